"""A training process on a CPU keeps its freed memory, where there is glibc and nobody forbids it."""

import os
import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
RESIDENT = """
import resource, torch
from cnlib.data import load
from cnlib.training import Config, train
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
train(Config(width=0.0625, epochs=1, batch_size=16, train_size=16, test_size=10))
blocks = [torch.ones(2**22) for _ in range(16)]  # 16 times 16 MB
full = resident()
del blocks
print(full - resident() > 2**27)
"""


@glibc
@pytest.mark.parametrize("switch, returned", [({}, "False"), ({"CNLIB_KEEP_MEMORY": "0"}, "True")])
def test_what_is_freed_stays_in_the_process_from_the_first_run_on(switch, returned):
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], env=os.environ | switch, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.strip() == returned, done.stderr


def test_elsewhere_nothing_is_done(monkeypatch):
    from cnlib.training import allocator

    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_freed_memory() is False
