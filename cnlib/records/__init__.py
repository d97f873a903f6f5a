"""Data, no code: recorded runs, benchmarks, mixtures, audits, the tables of the papers. `cnlib.results` reads them."""

from pathlib import Path

RECORDS = Path(__file__).parent
