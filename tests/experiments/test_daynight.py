"""What the day-for-night experiment is, and that its smallest profile shows what it should on photographs."""

import pytest

from cnlib.experiments import EXPERIMENTS, daynight, find_sweep

DAYNIGHT = EXPERIMENTS["daynight"]


def test_the_sweep_has_every_method_the_most_telling_first():
    names = [c.method for c in DAYNIGHT.configs("day-for-night", "reduced").values()]
    assert len(names) == 8 * 3 and set(names) == set(daynight.METHODS) and find_sweep("day-for-night") is DAYNIGHT
    assert names[:5] * 3 == names[:15] == ["cn", "none", "fixed", "in", "bn"] * 3


@pytest.mark.parametrize("profile", list(daynight.PROFILES))
def test_methods_differ_in_the_layer_on_the_image_only(profile):
    plain = DAYNIGHT.config("none", profile=profile).to_dict()
    for method in DAYNIGHT.methods:
        other = DAYNIGHT.config(method, profile=profile).to_dict()
        assert {key for key in plain if plain[key] != other[key]} <= {"norm", "method", "contexts", "options"}
        extra = other["options"].items() - plain["options"].items()
        assert {key for key, _ in extra} <= {"frozen", "from_data", "cn_lr"}
        assert other["placement"] == ("input",) and other["num_contexts"] == 2


def test_the_small_profiles_need_no_data_and_the_others_the_webcams():
    sets = {profile: DAYNIGHT.config("cn", profile=profile).dataset for profile in daynight.PROFILES}
    assert sets["smoke"] == sets["book"] == "photo-places" and {sets[p] for p in ("reduced", "paper")} == {"daynight"}
    assert dict(DAYNIGHT.config("cn", profile="paper").options)["held_out"] == 5


def test_what_was_declared_names_methods_and_readings():
    for claim in daynight.PRIMARY.values():
        for side in (claim.first, claim.second):
            assert isinstance(side, float) or side[0] in daynight.METHODS
    assert len(daynight.PRIMARY) == 11
