"""Settings all tests share: fixed seeds, one way of drawing examples, no contention between workers."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Derandomized: the same examples on every machine, so that a red run can be repeated. Timing is no part of a test.
settings.register_profile("default", max_examples=25, derandomize=True, deadline=None, print_blob=True)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads: for tests of equality to the last bit."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
