"""For each job on standard input, a process that trains one run and kills itself at a chosen moment.

Input: JSON [[record, config, moment, count], ...]; output: JSON list of how each ended. One import of torch serves all.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch._dynamo  # an optimizer's first step imports it: seconds, here once for all

import cnlib.data
import cnlib.experiments  # their tasks and data sets
from cnlib.training import TASKS, Config, checkpoint, records, train


def dying(function, count, before=False):
    """`function`, with SIGKILL before or after its count-th call."""
    calls = 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if before and calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapper


def child(record, config, moment, count):
    if moment == "step":  # in the middle of an epoch
        task = TASKS[config["task"]]
        task.step = dying(task.step, count)
    elif moment == "checkpoint":  # the checkpoint is written, the line is not
        checkpoint.save = dying(checkpoint.save, count)
    elif moment == "unlink":  # the last line is written, the checkpoint is still there
        unlink, kill = Path.unlink, dying(None, 1, before=True)
        Path.unlink = lambda path, **options: (kill if path.suffix == ".pt" else unlink)(path, **options)
    else:  # a temporary file is complete and not yet in place
        records.os.replace = dying(os.replace, count, before=True)
    train(Config.from_dict(config), record)


torch.set_num_threads(1)
cnlib.data.load("digits")
ends = []
for job in json.load(sys.stdin):
    if pid := os.fork():
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    else:
        child(*job)
        os._exit(0)
print(json.dumps(ends))
