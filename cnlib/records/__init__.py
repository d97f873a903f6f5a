"""Data, no code: recorded runs, benchmarks, mixtures, audits, labels and colors of test images, the papers' tables.
`cnlib.results` reads them."""

from pathlib import Path

RECORDS = Path(__file__).parent
