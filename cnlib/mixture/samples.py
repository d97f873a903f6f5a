"""Samples read in chunks, whatever array they come as; their moments and principal axes."""

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from cnlib.mixture.arguments import whole_number
from cnlib.mixture.em import Step

Array = Tensor | np.ndarray
DTYPE = torch.float64


class Samples:
    """(N, D) data as float64 chunks on the compute device.

    Args:
        x: tensor or array, float or integer; neither copied nor converted as a whole.
        device: where the chunks go; None: where x is (the CPU for MPS, which has no float64).
        rows: samples in a chunk; None: as many as keep `floats_per_feature` * D numbers each in the cache, or in
            128 MB on a GPU.
    """

    def __init__(self, x: Array, device: torch.device | str | None, rows: int | None, floats_per_feature: int = 1):
        if not isinstance(x, Tensor):
            if np.ma.is_masked(x):
                raise ValueError("x has masked entries: remove these samples, or fill them")
            try:
                x = np.asarray(x)
            except ValueError as error:
                raise ValueError(f"x must be (N, D), got rows that do not fit together: {error}") from error
            if x.dtype.kind not in "buif" or x.dtype.itemsize > 8:
                raise TypeError(f"x must hold real numbers of at most 8 bytes, got {x.dtype}")
            x = x.astype(x.dtype.newbyteorder("="), copy=False)
            # a read-only memory map is fine: nothing is written to x
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
                x = torch.from_numpy(x if min(x.strides, default=0) >= 0 else x.copy())
        if x.is_complex() or x.layout != torch.strided:
            raise TypeError(f"x must hold real numbers and be dense, got {x.dtype}, {x.layout}")
        if x.ndim != 2 or 0 in x.shape:
            hint = "; for one feature give x[:, None]" if x.ndim == 1 else ""
            raise ValueError(f"x must be (N, D) with at least one sample and one feature, got {tuple(x.shape)}{hint}")
        self.x = x.detach()
        self.device = torch.device(x.device if device is None else device)
        if self.device.type == "mps":
            self.device = torch.device("cpu")
        budget = 2**19 if self.device.type == "cpu" else 2**24
        self.rows = rows or min(max(budget // (x.shape[1] * floats_per_feature), 64), 2**17)
        self.out_dtype = DTYPE if x.dtype == DTYPE else torch.float32
        self.pool: ThreadPoolExecutor | None = None
        # one for each thread
        self.buffers: list[Tensor | None] = [None]

    def __len__(self) -> int:
        return len(self.x)

    def chunks(self, first: int = 0, last: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        last = len(self) if last is None else last
        for start in range(first, last, self.rows):
            where = slice(start, min(start + self.rows, last))
            yield where, self.x[where].to(self.device, DTYPE)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Within, `sweep` gives each of torch's threads its own share of the samples, on the CPU and for large data.
        They meet once in a pass, not in every operation: faster for chunks of this size, and far faster on a
        machine that is busy with something else."""
        count = torch.get_num_threads() if self.device.type == "cpu" else 1
        if count == 1 or self.x.numel() < 2**18 or len(self) < 1024 * count:
            yield
            return
        ready = threading.Barrier(count + 1)

        def only_one_thread_each() -> None:
            # makes torch initialize this thread now, not over the next line later
            torch.get_num_threads()
            torch.set_num_threads(1)
            ready.wait()

        with ThreadPoolExecutor(count, initializer=only_one_thread_each) as self.pool:
            try:
                for _ in range(count):
                    self.pool.submit(int)
                ready.wait()
                # the setting is by thread, except for threads yet to come
                torch.set_num_threads(count)
                self.buffers = [None] * count
                yield
            finally:
                self.pool, self.buffers = None, [None]

    def sweep(self, step: Step, assign: Callable[[Tensor, slice], Tensor]) -> float:
        """One pass that adds the moments of all samples to `step`. assign(logits, where) turns the log joint densities
        (K, n) of the samples `where` into responsibilities, in place; the sum of what it returns is returned."""
        workers = len(self.buffers)
        bounds = [len(self) * i // workers for i in range(workers + 1)]

        def share(i: int) -> tuple[Step, Tensor]:
            part, total = step.fork(self.buffers[i]), torch.zeros_like(step.mass[0])
            for where, chunk in self.chunks(bounds[i], bounds[i + 1]):
                logits = part.log_joint(chunk)
                total += assign(logits, where).sum()
                part.accumulate(logits)
            self.buffers[i] = part.buffer
            return part, total

        parts = list(map(share, range(workers)) if self.pool is None else self.pool.map(share, range(workers)))
        # in a fixed order, so that a fit can be repeated to the last bit
        for part, _ in parts:
            step.merge(part)  # type: ignore[arg-type]
        return float(sum(total for _, total in parts))

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.x[index.to(self.x.device)].to(self.device, DTYPE)

    def center(self) -> Tensor:
        """Mean (D,), from differences to the first sample so that an offset costs no digits. ValueError on nan, inf."""
        first = self[torch.tensor(0)]
        total = torch.zeros_like(first)
        for _, chunk in self.chunks():
            total += (chunk - first).sum(0)
        center = first + total / len(self)
        if not bool(center.isfinite().all()):
            self.check_finite()
            raise ValueError("x is too large for sums in float64: rescale it")
        return center

    def check_finite(self) -> None:
        for where, chunk in self.chunks():
            bad = (~chunk.isfinite()).nonzero()
            if len(bad):
                row, column = bad[0].tolist()
                raise ValueError(
                    f"x holds {float(chunk[row, column])} at sample {where.start + row}, feature {column}: "
                    "remove or replace nan and inf"
                )

    def scatter(self, center: Tensor) -> Tensor:
        """Sum over samples of (x - center)(x - center)^T, (D, D)."""
        scatter = center.new_zeros(len(center), len(center))
        for _, chunk in self.chunks():
            chunk = chunk - center
            scatter.addmm_(chunk.T, chunk)
        return scatter


def principal_axes(x: Samples, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the first principal axes (D, count) of the samples, by randomized subspace iteration (Halko,
    Martinsson & Tropp 2011), so that no (D, D) matrix is formed. Each axis has its largest entry positive."""
    count, seed = whole_number("count", count, least=1), whole_number("seed", seed)
    center = x.center()
    if count > len(center):
        raise ValueError(f"count={count} is more than the {len(center)} features allow")
    width = min(count + 10, len(center))
    basis = torch.randn(len(center), width, generator=torch.Generator().manual_seed(seed), dtype=DTYPE).to(x.device)
    for _ in range(8):
        basis = torch.linalg.qr(basis).Q
        # scatter matrix times basis
        image = torch.zeros_like(basis)
        for _, chunk in x.chunks():
            chunk = chunk - center
            image.addmm_(chunk.T, chunk @ basis)
        basis, image = image, basis
    axes = image @ torch.linalg.eigh(image.T @ basis).eigenvectors.flip(1)[:, :count]
    return center, axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
