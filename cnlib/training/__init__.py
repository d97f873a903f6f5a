"""One loop for all experiments: ``train(Config(...), "runs/bn-s0.jsonl")`` trains, resumes, or returns the record."""

from cnlib.training.adamatch import AdaMatch, AdaMatchKeras
from cnlib.training.blended import Blended
from cnlib.training.build import check
from cnlib.training.checkpoint import Busy
from cnlib.training.config import Config
from cnlib.training.loop import train
from cnlib.training.pairs import Pairs
from cnlib.training.readings import TestSet
from cnlib.training.records import Run, read
from cnlib.training.told import Told
from cnlib.training.trainer import TASKS, Trainer
from cnlib.training.worth import Worth

__all__ = [
    "TASKS",
    "AdaMatch",
    "AdaMatchKeras",
    "Blended",
    "Busy",
    "Config",
    "Pairs",
    "Run",
    "TestSet",
    "Told",
    "Trainer",
    "Worth",
    "check",
    "read",
    "train",
]
