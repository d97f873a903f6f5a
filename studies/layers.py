"""Forward + backward time and memory of each layer, as ratios to torch.nn.BatchNorm2d in the same run.

Every measurement alternates the layer with nn.BatchNorm2d and keeps the median of the ratios, so that a machine
whose speed drifts drifts for both. "kept" is what autograd holds for the backward, "peak" the most that is
allocated at once during forward + backward, both without x and its incoming gradient. "copy" is one copy of x, a
reading and a writing: what the machine's memory allows, in the same unit.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import cnlib

# the small end, then the layers of the CIFAR ConvNet (Table IV) at batch 256, then a large one
SHAPES = ((8, 64, 8, 8), (256, 256, 4, 4), (256, 128, 8, 8), (256, 128, 16, 16), (256, 64, 32, 32), (256, 128, 32, 32))
K = 3
Step = Callable[[], object]


class NaiveMixtureNorm(nn.Module):
    """Eq. (3)-(4) word for word: K normalized copies of x, differentiated by autograd."""

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        t, copies = tau[:, :, None, None], x[:, None].expand(-1, K, -1, -1, -1)
        if tau.dim() == 2:
            t = t[..., None]
        axes, weight = (0, 3, 4), t / (t.expand(-1, -1, 1, *x.shape[2:]).sum((0, 3, 4), keepdim=True))
        mean = (weight * copies).sum(axes, keepdim=True)
        centered = copies - mean
        var = (weight * centered.square()).sum(axes, keepdim=True)
        prior = tau.mean(0).view(1, K, 1, 1, 1)
        return (t / prior.sqrt() * centered / (var + 1e-5).sqrt()).sum(1)


class AuthorsContextNorm(nn.Module):
    """The authors' published ContextNorm (a BatchNorm per context), which takes x and ids as one tuple. ImportError
    where their package is not installed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = importlib.import_module("pytorch-context-based-norm").ContextNorm(K)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.layer((x, ids))


EAGER_ONLY = (NaiveMixtureNorm, AuthorsContextNorm)


def layers(shape: tuple[int, ...], gradient: str) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Name, layer and what its forward takes after x."""
    n, c = shape[:2]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(K, (n,), generator=generator)
    tau = torch.rand(n, K, generator=generator).softmax(1)
    g = {"gradient": gradient}
    yield "BatchNorm", cnlib.BatchNorm(c, **g), ()
    yield "LayerNorm", cnlib.LayerNorm(c, **g), ()
    yield "InstanceNorm", cnlib.InstanceNorm(c, affine=True, **g), ()
    yield "GroupNorm", cnlib.GroupNorm(8, c, **g), ()
    yield "ContextNorm", cnlib.ContextNorm(c, K, **g), (ids,)
    yield "MixtureNorm, given", cnlib.MixtureNorm(c, K, **g), (tau,)
    yield "MixtureNorm, EM", cnlib.MixtureNorm(c, K, em_steps=2, **g), ()
    yield "SwitchableNorm", cnlib.SwitchableNorm(c, **g), ()
    yield "ModeNorm", cnlib.ModeNorm(c, 2, **g), ()
    yield "GatedContextNorm", cnlib.GatedContextNorm(c, K, **g), ()
    yield "ExemplarNorm", cnlib.ExemplarNorm(c, **g), ()
    if gradient == "autograd":
        yield "nn.BatchNorm2d", nn.BatchNorm2d(c), ()
        yield "MixtureNorm, naive K copies", NaiveMixtureNorm(), (tau,)
        with suppress(ImportError):
            yield "authors' ContextNorm", AuthorsContextNorm(), (ids,)


def step_of(layer: nn.Module, x: Tensor, extra: tuple[Tensor, ...], grad: Tensor) -> Step:
    def step() -> None:
        layer(x, *extra).backward(grad)
        x.grad = None

    return step


def seconds(step: Step) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def time_ratio(step: Step, reference: Step, budget: float) -> tuple[float, float]:
    """Median of paired ratios step / reference, and the median reference time in ms."""
    for _ in range(3):
        step(), reference()
    pair = seconds(step) + seconds(reference)
    rounds = max(5, min(400, int(budget / pair)))
    pairs = [(seconds(step), seconds(reference)) for _ in range(rounds)]
    return statistics.median(a / b for a, b in pairs), 1e3 * statistics.median(b for _, b in pairs)


def kept_bytes(forward: Callable[[], Tensor], x: Tensor) -> int:
    """Bytes of the storages autograd holds after the forward, without x itself."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = forward()
    storages.pop(x.untyped_storage().data_ptr(), None)
    del y
    return sum(storages.values())


def peak_bytes(step: Step, device: torch.device) -> int:
    """The most that is allocated at once while ``step`` runs: on CUDA from torch's counter, else from its profiler."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    held = peak = 0
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class Beside:
    """nn.BatchNorm2d on x of one shape, beside which the others are measured. budget: seconds of timing for each;
    depth: how many in a row."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, budget: float, depth: int = 1) -> None:
        torch.manual_seed(0)
        self.x, self.grad = torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)
        self.budget, target = budget, torch.empty_like(self.grad)
        native = in_a_row(lambda: nn.BatchNorm2d(shape[1]), depth).to(device)
        self.step = step_of(native, self.x, (), self.grad)
        self.kept, self.peak = kept_bytes(lambda: native(self.x), self.x), peak_bytes(self.step, device)
        self.copy_ratio, _ = time_ratio(lambda: target.copy_(self.grad), self.step, budget)

    def measure(self, layer: nn.Module, extra: tuple[Tensor, ...]) -> dict[str, Any]:
        step = step_of(layer, self.x, extra, self.grad)
        ratio, native_ms = time_ratio(step, self.step, self.budget)
        return {
            "time_ratio": ratio,
            "native_ms": native_ms,
            "copy_ratio": self.copy_ratio,
            "kept_bytes": kept_bytes(lambda: layer(self.x, *extra), self.x),
            "native_kept_bytes": self.kept,
            "peak_ratio": peak_bytes(step, self.x.device) / self.peak,
        }


def in_a_row(make: Callable[[], nn.Module], depth: int) -> nn.Module:
    return make() if depth == 1 else nn.Sequential(*(make() for _ in range(depth)))


def starts(shape: tuple[int, ...], device: torch.device, budget: float) -> Iterator[dict[str, Any]]:
    """What a compiled step pays for being started: BN eight in a row, one graph, beside eight native ones run eager;
    and BN alone where the compiler no longer checks that its input is what it was compiled for."""
    about = {"gradient": "manual", "compiled": True, "shape": list(shape)}
    for name, depth, skip in (("BatchNorm, 8 in a row", 8, False), ("BatchNorm, unguarded", 1, True)):
        torch.compiler.reset()
        beside = Beside(shape, device, budget, depth)
        layer = torch.compile(in_a_row(lambda: cnlib.BatchNorm(shape[1]), depth).to(device))
        step_of(layer, beside.x, (), beside.grad)()
        with torch.compiler.set_stance(skip_guard_eval_unsafe=skip):
            yield {"layer": name, **about, **beside.measure(layer, ())}


def run(
    budget: float = 1.0,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    device: torch.device | str = "cpu",
    names: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One row a layer, mode and shape. budget: seconds of timing for each; names: of layers, () for all.

    Raises ValueError for a name that is none of a layer.
    """
    known = [name for name, _, _ in layers((2, 8, 2, 2), "autograd")]
    if unknown := set(names) - set(known):
        raise ValueError(f"{', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    device = torch.device(device)
    rows = []
    for shape in shapes:
        beside = Beside(shape, device, budget)
        for gradient, compiled in itertools.product(("manual", "autograd"), (False, True)):
            for name, layer, extra in layers(shape, gradient):
                if (names and name not in names) or (compiled and isinstance(layer, EAGER_ONLY)):
                    continue
                torch.compiler.reset()
                layer, extra = layer.to(device), tuple(tensor.to(device) for tensor in extra)
                found = beside.measure(torch.compile(layer) if compiled else layer, extra)
                rows.append({"layer": name, "gradient": gradient, "compiled": compiled, "shape": list(shape), **found})
        if shape == SHAPES[0] and not names:
            rows += starts(shape, device, budget)
    return rows


def summarize(rows: list[dict[str, Any]]) -> str:
    """Geometric means of the time ratios over the shapes, one line a layer and mode."""
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    # what was measured on one of several shapes has no mean over them
    counts = Counter(row["layer"] for row in rows)
    few = [row for row in rows if counts[row["layer"]] < len(shapes)]
    rows = [row for row in rows if counts[row["layer"]] >= len(shapes)]
    head = [f"{'x'.join(map(str, s)):>14}" for s in shapes]
    lines = [f"{'time / nn.BatchNorm2d':<46}{''.join(head)}{'geo. mean':>11}{'kept':>10}{'peak':>7}"]
    modes = dict.fromkeys((r["compiled"], r["gradient"], r["layer"]) for r in rows)
    for compiled, gradient, layer in sorted(modes):
        cells = [r for r in rows if (r["compiled"], r["gradient"], r["layer"]) == (compiled, gradient, layer)]
        ratios = [c["time_ratio"] for c in cells]
        label = f"{layer}, {gradient}, {'compiled' if compiled else 'eager'}"
        extra = max(c["kept_bytes"] - c["native_kept_bytes"] for c in cells) / 1024
        peak = statistics.geometric_mean(c["peak_ratio"] for c in cells)
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        line = "".join(f"{r:>14.2f}" for r in ratios)
        lines.append(f"{label:<46}{line}{mean:>11.2f}{extra:>+8.0f} K{peak:>7.2f}")
    lines += [f"{row['layer']}, {'x'.join(map(str, row['shape']))}: {row['time_ratio']:.2f}" for row in few]
    lines.append("kept: most kept for the backward beyond nn.BatchNorm2d over the shapes; peak: ratio, geometric mean")
    return "\n".join(lines)
