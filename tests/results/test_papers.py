"""The tables of the papers, as printed."""

import pytest

from cnlib import results

# spot checks, read off the papers
PRINTED = [
    ("french_table_1", {"dataset": "cifar100", "model": "CN", "epoch": 50}, 61.01),
    ("french_table_1", {"dataset": "tiny-imagenet", "model": "MN", "epoch": 25}, 38.18),
    ("french_table_2", {"dataset": "cifar10"}, 88.09),
    ("french_table_3", {"model": "ViT+CN", "metric": "recall"}, 98.53),
    ("french_table_4", {"dataset": "svhn", "model": "AdaMatch+CN", "metric": "precision"}, 53.83),
    ("icdm_table_5", {"dataset": "cifar10", "model": "MN", "lr": 0.001, "weight_decay": 2e-5}, 87.9),
    ("icdm_table_5", {"dataset": "cifar100", "model": "CN", "lr": 0.005, "weight_decay": 1e-4}, 56.08),
    ("icdm_table_6", {"dataset": "cifar100", "lr": 0.01}, 62.01),
    ("icdm_table_7", {"model": "ViT+CN-Channels", "metric": "top5"}, 99.83),
    ("icdm_table_8", {"dataset": "cifar100+mnist", "model": "ViT+BN", "metric": "top5"}, None),
    ("icdm_table_9", {"dataset": "svhn", "model": "AdaMatch+CN-Channels"}, 43.80),
    ("icdm_table_10", {"dataset": "svhn", "model": "AdaMatch+CN-Channels"}, 23.22),
]


@pytest.mark.parametrize(("name", "where", "value"), PRINTED)
def test_printed_tables(name, where, value):
    assert results.published(name).value(**where) == value


def test_printed_tables_are_complete():
    sizes = {name: len(results.published(name).rows) for name in results.tables()}
    assert sizes == {
        "french_table_1": 36, "french_table_2": 3, "french_table_3": 8, "french_table_4": 16, "icdm_table_5": 24,
        "icdm_table_6": 8, "icdm_table_7": 8, "icdm_table_8": 12, "icdm_table_9": 4, "icdm_table_10": 4,
    }  # fmt: skip
    for name in sizes:
        table = results.published(name)
        assert "Table" in table.source
        assert all(row["value"] is None or 0 < row["value"] < 100 for row in table.rows)


def test_unknown_table_and_ambiguous_value():
    with pytest.raises(ValueError, match="no published table 'icdm_table_99'"):
        results.published("icdm_table_99")
    with pytest.raises(ValueError, match="4 rows have"):
        results.published("icdm_table_5").value(dataset="cifar10", model="BN")
