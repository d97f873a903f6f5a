"""Recorded runs and published tables, as data in the package; and the intervals to compare them with.

runs = cnlib.results.load("convnet")                       # recorded runs of an experiment
summary = cnlib.results.final(runs, "test_accuracy")       # {"bn": Interval, "cn": ...} over seeds
cnlib.results.difference(runs, "cn", "cn-random")          # in three readings, paired on equal seeds; shown or not
cnlib.results.contrast(runs, {"conv3": ("cn", "bn")})       # over seeds, test images and settings
cnlib.results.declared(runs, experiment.primary)           # what was declared, with p values corrected for their number
cnlib.results.published("icdm_table_5").rows
cnlib.results.reproduction(runs)                           # every published number beside ours, with a verdict
"""

from cnlib.results.benchmarks import machines, measured
from cnlib.results.contrasts import Contrast, Estimate, contrast, correct, crossed, declared, domains, holm, labels
from cnlib.results.formats import to_numbers, to_text
from cnlib.results.images import Colors, MixtureRecord, colors, mixture_record
from cnlib.results.intervals import Difference, Interval, difference, final, interval, paired, reestimated
from cnlib.results.papers import Table, published, tables
from cnlib.results.report import VERDICTS, Cell, reproduction
from cnlib.results.runs import by_method, experiments, load, select, to_frame

__all__ = [
    "VERDICTS",
    "Cell",
    "Colors",
    "Contrast",
    "Difference",
    "Estimate",
    "Interval",
    "MixtureRecord",
    "Table",
    "by_method",
    "colors",
    "contrast",
    "correct",
    "crossed",
    "declared",
    "difference",
    "domains",
    "experiments",
    "final",
    "holm",
    "interval",
    "labels",
    "load",
    "machines",
    "measured",
    "mixture_record",
    "paired",
    "published",
    "reestimated",
    "reproduction",
    "select",
    "tables",
    "to_frame",
    "to_numbers",
    "to_text",
]
