"""Speed and memory, side by side with peers in one run. The tests run it in small and time nothing."""
