"""What measures and writes records into the package: speed and memory beside peers (`python -m studies`), and what is
recorded of images and of published ids. The tests run it in small and time nothing."""
