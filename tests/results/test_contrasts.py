"""Contrasts: over seeds and images at once, pooled over settings, with a margin; beside a simulation or a library."""

import numpy as np
import pytest
import torch

from cnlib import results
from cnlib.data import load
from cnlib.experiments import EXPERIMENTS
from cnlib.records import RECORDS
from cnlib.results import contrasts
from cnlib.sweeps import Claim, Measured
from cnlib.training import Config
from cnlib.training.records import Run, pack

stats = pytest.importorskip("scipy.stats")


def drawn(rng, seeds, images, of_seed, of_image, rest, mean=0.0):
    rows, columns = of_seed * rng.normal(size=(seeds, 1)), of_image * rng.normal(size=(1, images))
    return mean + rows + columns + rest * rng.normal(size=(seeds, images))


@pytest.mark.parametrize("spread", [(0.5, 0.5, 2.0), (0.5, 0.0, 1.0), (0.0, 1.0, 1.0), (0.0, 0.0, 1.0)])
def test_crossed_intervals_cover_the_truth_as_often_as_they_say(spread):
    """A t interval over seeds alone would leave out the images: its coverage is asserted to be too small there."""
    rng, hits, alone, squares = np.random.default_rng(0), [], [], []
    for _ in range(1000):
        values = drawn(rng, 4, 60, *spread, mean=0.3)
        estimate = contrasts.crossed(values)
        squares.append(estimate.se**2)
        found = estimate.interval()
        hits.append(found.low <= 0.3 <= found.high)
        low, high = results.interval(values.mean(1)).low, results.interval(values.mean(1)).high
        alone.append(low <= 0.3 <= high)
    assert np.mean(hits) > 0.935
    # and the standard error is that of the mean; where seeds or images add nothing, it is a little too large
    of_seed, of_image, rest = spread
    true = of_seed**2 / 4 + of_image**2 / 60 + rest**2 / 240
    assert 0.9 * true < np.mean(squares) < (1.1 if of_seed and of_image else 1.7) * true
    if spread == (0.0, 1.0, 1.0):
        assert np.mean(alone) < 0.85


@pytest.mark.parametrize(("seeds", "of_seed", "least"), [(2, 0.141, 0.88), (3, 0.157, 0.91)])
def test_crossed_intervals_of_few_seeds_may_cover_a_little_less_than_they_say(seeds, of_seed, least):
    """As the docstring says; seeds make ten times as much of the variance of the mean as images do."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(2000):
        found = contrasts.crossed(drawn(rng, seeds, 1000, of_seed, 0.7, 1.0, mean=0.3)).interval()
        hits.append(found.low <= 0.3 <= found.high)
    assert least < np.mean(hits) < 0.945


def test_without_image_effects_an_estimate_is_the_t_interval_over_seeds():
    values = np.array([[0.1], [0.3], [0.2]]) + np.zeros((1, 50))
    found, plain = contrasts.crossed(values).interval(), results.interval([0.1, 0.3, 0.2])
    np.testing.assert_allclose([found.mean, found.half, found.n], [plain.mean, plain.half, 3])
    with pytest.raises(ValueError, match="two seeds and two images at least"):
        contrasts.crossed(values[:1])


def test_p_values_are_those_of_scipys_t_tests():
    values = [0.2, 0.5, 0.1, 0.4, 0.6]
    one = contrasts.Estimate(np.mean(values), stats.sem(values), 4)
    assert one.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    for margin in (0.2, 0.5, 1.0):
        lower = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
        upper = stats.ttest_1samp(values, margin, alternative="less").pvalue
        assert one.p_equivalent(margin) == pytest.approx(max(lower, upper))
        inside = max(abs(one.interval(0.9).low), abs(one.interval(0.9).high)) < margin
        assert inside == (one.p_equivalent(margin) < 0.05)


def test_a_network_beside_itself_differs_by_nothing():
    none = contrasts.crossed(np.zeros((3, 50)))
    assert (none.p, none.p_equivalent(0.01), none.interval().half) == (1.0, 0.0, 0.0)
    always = contrasts.Estimate(0.02, 0.0, np.inf)
    assert (always.p, always.p_equivalent(0.01)) == (0.0, 1.0)


@pytest.mark.parametrize(("n", "power"), [(3, 0.8), (4, 0.5), (5, 0.9), (20, 0.8)])
def test_what_can_be_detected_is_detected_with_the_power_asked_for(n, power):
    rng = np.random.default_rng(1)
    one = contrasts.Estimate(0.0, 1 / np.sqrt(n), n - 1)
    samples = rng.normal(one.detectable(power), 1, (40_000, n))
    share = (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()
    assert share == pytest.approx(power, abs=0.01)


def test_what_can_be_detected_at_the_ends():
    normal = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert contrasts.Estimate(0.3, 2.0, np.inf).detectable() == pytest.approx(2 * normal, rel=1e-3)
    assert contrasts.Estimate(0.3, 1.0, 1).detectable() == pytest.approx(16.33, abs=0.02)  # beside 14.08
    assert contrasts.Estimate(0.3, 0.0, np.inf).detectable() == 0
    for power in (0.05, 1.0, 80):
        with pytest.raises(ValueError, match="expected a power above 0.05"):
            contrasts.Estimate(0.3, 1.0, 5).detectable(power)


def test_holm_corrects_as_published():
    found = results.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert results.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    with pytest.raises(ValueError, match="p of 'b' is nan, expected 0 to 1"):
        results.holm({"a": 0.01, "b": float("nan"), "c": 0.03})


def run(method, seed, guesses, dataset="cifar10", **fields):
    config = Config(method=method, seed=seed, dataset=dataset, test_size=2000, **fields)
    final = {"predictions": {"test_reestimated": pack(torch.as_tensor(guesses))}}
    return Run(f"{dataset}-{method}-s{seed}", config, {}, {}, "finished", final=final)


def with_accuracy(rng, dataset, share):
    truth = results.labels(dataset, 2000).copy()
    wrong = rng.random(len(truth)) > share
    truth[wrong] = (truth[wrong] + 1) % 10
    return truth


def test_a_contrast_averages_what_shares_images_and_counts_data_sets_apart():
    rng, runs = np.random.default_rng(0), []
    for dataset in ("cifar10", "cifar100"):
        for seed in range(3):
            base = with_accuracy(rng, dataset, 0.6)
            runs += [run("bn", seed, base, dataset)]
            runs += [run("cn", seed, with_accuracy(rng, dataset, 0.7), dataset)]
            runs += [run("cn-channels", seed, base, dataset)]  # never differs
    found = results.contrast(runs, {"third": ("cn", "bn"), "image": ("cn-channels", "bn")})
    assert list(found.settings) == [f"{d}, {p}" for d in ("cifar10", "cifar100") for p in ("third", "image")]
    gains = [e.mean for e in found.settings.values()]
    assert gains[1] == gains[3] == 0 and gains[0] == pytest.approx(0.1, abs=0.03)
    assert found.mean.mean == pytest.approx(np.mean(gains)) and found.mean.n == 3
    expected = results.interval(gains)
    np.testing.assert_allclose([found.among.mean, found.among.interval().half], [expected.mean, expected.half])
    # averaged with a setting in which nothing differs, the error of the other is halved
    alone = results.contrast(runs, {"third": ("cn", "bn")})
    apart = [e.se for e in alone.settings.values()]  # two data sets share nothing
    assert alone.mean.se == pytest.approx(np.hypot(*apart) / 2)
    assert found.mean.se == pytest.approx(alone.mean.se / 2, rel=1e-9)
    one = results.contrast(results.select(runs, dataset="cifar10"), {"third": ("cn", "bn")})
    assert one.among is None and one.mean == one.settings["cifar10, third"]


def test_what_cannot_be_contrasted_is_an_error():
    rng = np.random.default_rng(0)
    runs = [run(m, s, with_accuracy(rng, "cifar10", 0.5)) for m in ("bn", "cn") for s in range(2)]
    runs[-1].final.clear()
    with pytest.raises(ValueError, match="cn and bn have 1 seeds with predictions of test_reestimated in common"):
        results.contrast(runs, {"third": ("cn", "bn")})
    apart = [run(m, s, with_accuracy(rng, "cifar10", 0.5)) for m in ("bn", "mn") for s in range(4)]
    apart += [run("cn", s, with_accuracy(rng, "cifar10", 0.5)) for s in (0, 1)]
    apart += [run("cn-channels", s, with_accuracy(rng, "cifar10", 0.5)) for s in (2, 3)]
    with pytest.raises(ValueError, match="third, image have 0 seeds in common"):
        results.contrast(apart, {"third": ("cn", "bn"), "image": ("cn-channels", "bn")})
    with pytest.raises(ValueError, match="no labels of mnist-2000 in the package: there are cifar10-2000"):
        results.labels("mnist", 2000)
    with pytest.raises(ValueError, match="no domains of cifar10-2000 in the package"):
        results.labels("cifar10", 2000, domain=0)


@pytest.mark.parametrize(("experiment", "least"), [("convnet", 36), ("adamatch", 19), ("second_view", 15)])
def test_shipped_labels_give_every_recorded_accuracy(experiment, least):
    runs = [r for r in results.load(experiment) if "predictions" in r.final]
    assert len(runs) >= least
    for r in runs:
        for reading in r.final["predictions"]:
            known = r.final.get(f"{reading}_accuracy", r.epochs.get(f"{reading}_accuracy", [None])[-1])
            assert results.correct(r, reading).mean() == pytest.approx(known, abs=1e-9)


@pytest.mark.parametrize("path", sorted((RECORDS / "labels").glob("*.jsonl")), ids=lambda p: p.stem)
def test_shipped_labels_are_those_of_the_data(path):
    name, size = path.stem.rsplit("-", 1)
    try:
        data = load(name)
    except (OSError, ValueError):
        pytest.skip(f"{name} is not here")
    count = None if size == "all" else int(size)
    test = data.subset(None, count)
    np.testing.assert_array_equal(results.labels(name, count), test.test_labels)
    if test.test_domains is not None:
        np.testing.assert_array_equal(results.domains(name, count), test.test_domains)


DECLARED = {name: e.primary for name, e in EXPERIMENTS.items() if e.primary}


@pytest.mark.parametrize("name", DECLARED)
def test_declared_comparisons_are_of_methods_and_fields_that_exist(name):
    methods = EXPERIMENTS[name].methods
    for claim in DECLARED[name].values():
        if isinstance(claim, Measured):
            assert all(side[0] in methods for side in (claim.first, claim.second) if isinstance(side, tuple))
        else:
            assert claim.pairs and {name for pair in claim.pairs.values() for name in pair} <= set(methods)
            assert set(claim.where) <= set(Config.__dataclass_fields__)


def test_what_was_declared_is_corrected_for_all_of_it_run_or_not():
    rng = np.random.default_rng(0)
    runs = [
        run(m, s, with_accuracy(rng, "cifar10", share), lr=lr)
        for m, share in (("bn", 0.5), ("cn", 0.6))
        for s in range(3)
        for lr in (0.1, 0.2)
    ]
    claims = {
        "run": Claim({"third": ("cn", "bn")}, where={"lr": 0.1}),
        "one of its pairs is not": Claim({"third": ("cn", "bn"), "image": ("cn-channels", "bn")}, where={"lr": 0.1}),
        "not at this rate": Claim({"third": ("cn", "bn")}, where={"lr": 0.3}),
    }
    found, p = results.declared(runs, claims)
    assert [one is None for one in found.values()] == [False, True, True]
    alone = results.contrast(results.select(runs, lr=0.1), {"third": ("cn", "bn")})
    assert found["run"] == alone and p["run"] == pytest.approx(3 * alone.mean.p)
    assert p["not at this rate"] == 1
    # two rates at once are no setting, and no reason to say that nothing was run
    with pytest.raises(ValueError, match="lr: 0.2, not 0.1"):
        results.declared(runs, {"both rates": Claim({"third": ("cn", "bn")})})


def test_a_declared_comparison_of_a_quantity_is_a_t_test_over_seeds():
    rng = np.random.default_rng(0)
    runs = [run(m, s, with_accuracy(rng, "cifar10", 0.5)) for m in ("bn", "cn") for s in range(4)]
    for one in runs[:-1]:  # the last seed of cn is missing
        one.final["gap"] = rng.normal()
    gaps = {m: [one.final["gap"] for one in runs[:-1] if one.config.method == m] for m in ("bn", "cn")}
    claims = {
        "apart": Measured(("cn", "gap"), ("bn", "gap")),
        "beside a number": Measured(("bn", "gap"), 0.5),
        "not run": Measured(("mn", "gap"), 0.5),
    }
    found, p = results.declared(runs[:-1], claims)
    assert found["not run"] is None and p["not run"] == 1
    paired, single = stats.ttest_rel(gaps["cn"], gaps["bn"][:3]), stats.ttest_1samp(gaps["bn"], 0.5)
    for name, peer, number in (("apart", paired, 0), ("beside a number", single, 0.5)):
        assert found[name].mean.p == pytest.approx(peer.pvalue)
        # the peer's interval is of the mean itself, ours of what it is more than the number
        assert found[name].mean.interval().low == pytest.approx(peer.confidence_interval().low - number)
    # a quantity that a run does not have is no number, and no comparison
    with pytest.raises(ValueError, match="p of 'apart' is nan"):
        results.declared(runs, {"apart": claims["apart"]})
