"""Data, no code: recorded runs, benchmarks, mixtures and audits, and the tables of the papers. `cnlib.results` reads them."""

from pathlib import Path

RECORDS = Path(__file__).parent
