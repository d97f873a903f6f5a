"""What the experiments with the transformer are, as far as configurations say it, and that they show the leak."""

import numpy as np
import pytest

from cnlib import results
from cnlib.experiments import EXPERIMENTS, blended, vit
from cnlib.models import MODELS
from cnlib.training import Run, train

VIT, BLENDED = EXPERIMENTS["vit"], EXPERIMENTS["blended"]


def test_the_paper_profile_is_the_keras_example_and_the_authors_choices():
    configs = VIT.configs("table-vii", "paper")
    assert len(configs) == 8 * 3 and set(VIT.configs("table-3", "paper")) < set(configs)
    networks = {frozenset(c.options) - {("frozen", True), ("token", True)} for c in configs.values()}
    (options,) = networks
    assert sum(p.numel() for p in MODELS["vit"](100, 3, 32, **dict(options)).parameters()) == 21_759_012
    for config in configs.values():
        assert (config.optimizer, config.lr, config.weight_decay, config.batch_size) == ("adamw-tfa", 1e-3, 1e-4, 216)
        assert (config.epochs, config.validation, config.patience) == (500, 5000, 10)
        assert (config.flip, config.rotate, config.zoom, config.schedule) == (True, 7.2, 0.2, "constant")
        assert config.start == "glorot" and config.encoder == "linear"
    places = {c.method: c.placement for c in configs.values()}
    assert places["cn-patches"] == ("patches",) and places["cn-channels"] == places["vit-bn"] == ("input",)


@pytest.mark.parametrize("experiment", [VIT, BLENDED], ids=lambda e: e.name)
@pytest.mark.parametrize("profile", ["smoke", "book", "reduced", "narrow", "paper"])
def test_methods_differ_in_what_they_say_only(experiment, profile):
    plain = experiment.config("vit", profile=profile).to_dict()
    told = {"norm", "placement", "options", "contexts", "num_contexts", "method"}
    for method in experiment.methods:
        other = experiment.config(method, profile=profile).to_dict()
        differing = {key for key in plain if plain[key] != other[key]}
        assert differing <= told | ({"epochs", "warmup"} if method in blended.PROBES else set())
        extra = other["options"].items() - plain["options"].items()
        assert {key for key, _ in extra} <= {"token", "frozen", "from_data", "raw", "labels", "flips"}
    assert experiment.config("token", profile=profile).contexts == plain["contexts"] != "none"


@pytest.mark.parametrize("profile", ["reduced", "narrow"])
def test_the_reduced_network_is_small(profile):
    options = dict(VIT.config("vit", profile=profile).options)
    assert sum(p.numel() for p in MODELS["vit"](100, 3, 32, **options).parameters()) == 147_748


def test_the_authors_precision_fills_the_printed_column():
    values = {"accuracy": 0.5, "f1": 0.4, "their_precision": 0.1, "their_recall": 0.9, "precision": 0.6, "recall": 0.7}
    runs = []
    for method, more in (("vit-bn", 0.0), ("cn-channels", 0.01)):
        for seed in range(3):
            config = VIT.config(method, seed, "paper")
            # it stopped after 40 of 500 epochs
            epochs = {f"test_{name}": np.full(40, value + more + 0.001 * seed) for name, value in values.items()}
            runs.append(Run(f"{method}-{seed}", config, {}, epochs, "finished"))
    cells = {(c.row["model"], c.row["metric"]): c for c in results.reproduction(runs, ["french_table_3"])}
    assert cells["ViT+BN", "precision"].ours.mean == pytest.approx(10.1)
    assert cells["ViT+CN", "recall"].ours.mean == pytest.approx(91.1)
    assert cells["ViT+CN", "accuracy"].ours_gap.best.mean == pytest.approx(1) and len(cells) == 8
    assert cells["ViT+CN", "precision"].gap == pytest.approx(23.36 - 8.96)


def test_the_blend_draws_equal_shares_and_each_probe_is_in_its_sweep():
    for profile, held_out in (("smoke", 30), ("reduced", 11000)):
        probes = {c.method: c for c in BLENDED.configs("collapse", profile, seeds=1).values()}
        assert set(probes) == set(blended.PROBES)
        assert (probes["vit-last"].validation, probes["vit-last"].patience) == (held_out, 3)
        assert (probes["vit-last"].epochs, probes["vit-raw"].epochs) == (15, 2)
    reduced = BLENDED.config("vit", profile="reduced")
    assert dict(reduced.options)["images"] == 20480 and (reduced.epochs, reduced.batch_size) == (6, 128)


@pytest.mark.slow
def test_the_leak_shows_on_digits():
    """Told the parity, a network obeys it, right or wrong; the one that is not told, masked, does as well."""
    runs = {
        m: train(vit.config(m, profile="book", epochs=6, options={"predict": False})) for m in ("vit", "cn-channels")
    }
    plain, cn = runs["vit"], runs["cn-channels"]
    assert plain.curve("test_accuracy")[-1] > 0.6
    assert plain.curve("test_masked_accuracy")[-1] > plain.curve("test_accuracy")[-1] + 0.02
    assert cn.curve("test_obedience")[-1] > 0.9 and cn.final["test_shuffled_obedience"] > 0.9
    assert cn.final["test_shuffled_accuracy"] < 0.6 < cn.curve("test_accuracy")[-1]
