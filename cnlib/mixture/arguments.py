"""Checks of what mixtures and contexts are given: numbers, choices, and files."""

import math
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int: ints and numpy integers are taken, no bool. TypeError for anything else, ValueError below
    `least` and where 8 bytes do not hold it."""
    try:
        number = operator.index(value)
        if isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from error
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must be between -2^63 and 2^63 - 1, got {number}")
    return number


def real_number(name: str, value: Any) -> float:
    """`value` >= 0 as a float: numbers of Python and numpy are taken, no bool, no text. TypeError for anything else,
    ValueError where it is negative, nan or inf."""
    try:
        if isinstance(value, bool | np.bool_ | str | bytes) or np.ndim(value):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, got {value!r}") from error
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must not be negative, and finite, got {number}")
    return number


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    return value


def yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def known_device(device: Any) -> Any:
    """`device`, where torch knows such a kind of device; whether there is one is seen when it is used."""
    try:
        torch.device("cpu" if device is None else device)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"device must be one of torch's, such as 'cpu' or 'cuda', got {device!r}") from error
    return device


@contextmanager
def refused_by_name(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Whatever does not fit inside, the file is refused by its name: ValueError. Errors of the file system pass."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if os.fspath(path) in str(error):
            raise
        raise ValueError(f"{os.fspath(path)} is damaged, or not a {what} file written by cnlib: {error}") from error
