"""Does CN tell a context through its means or through its scales? Each is taken away in turn, and the other is left.

    cnlib sweep means-or-scales --profile reduced

Told a context, CN subtracts its mean and divides by its standard deviation. A mean alone is a bias for each context,
which many networks have and nobody calls a normalization. `-means` learns a mean for each context, and one scale for
all; `-scales` a scale for each, and one mean. What is held is the part of the encoder that tells contexts apart: it
stays at the 0 where it starts, and its bias is learned as before.

Two contexts that CN gains by: the guess of `second_view` (`guess`), and the superclass of CIFAR-100 (`superclass`). CN
sits on the image (`cn-channels`), in the third layer (`cn`) or on the logits (`cn-logits`).
"""

from __future__ import annotations

from cnlib.experiments import second_view
from cnlib.experiments.context_ablation import C100, NOT_DIGITS, PUBLISHED
from cnlib.experiments.convnet import IMAGE, THIRD
from cnlib.experiments.second_view import GUESS, LOGITS
from cnlib.sweeps.experiment import Claim, Experiment, Fields, Grid, merged

TOLD: dict[str, Fields] = {"guess": GUESS, "superclass": {"contexts": "label", "num_contexts": 20}}
PLACES: dict[str, Fields] = {"cn-channels": IMAGE, "cn": THIRD, "cn-logits": LOGITS}
WHERE = {"guess": ("cn-channels", "cn-logits", "cn"), "superclass": ("cn-channels", "cn")}
# what differs between contexts, and the parameter that is held for it
PARTS = {"": "", "-means": "log_var_encoder.weight", "-scales": "mean_encoder.weight"}
METHODS: dict[str, Fields] = {
    f"{place}-{told}{part}": merged(PLACES[place], TOLD[told], {"options": {"held": held}} if held else {})
    for told, places in WHERE.items()
    for place in places
    for part, held in PARTS.items()
}
DATA: dict[str, Fields] = {"guess": second_view.OTHER, "superclass": C100}


def grid(told: str, part: str, profiles: tuple[str, ...] = ()) -> Grid:
    setting = DATA[told] if profiles else {}  # the profile's own data otherwise
    return Grid(tuple(f"{place}-{told}{part}" for place in WHERE[told]), (setting,), profiles)


# declared before the first run, of the last epoch under statistics estimated again
PRIMARY = {
    f"told a {told}: {part[1:]} alone, minus CN": Claim(
        {place: (f"{place}-{told}{part}", f"{place}-{told}") for place in WHERE[told]}, where=DATA[told]
    )
    for told in TOLD
    for part in PARTS
    if part
}
EXPERIMENT = Experiment(
    name="means_or_scales",
    about="what of CN tells a context: its means, a bias for each, or its scales",
    methods=METHODS,
    published={**PUBLISHED, **second_view.OTHER},
    profiles=second_view.SIZES,
    sweeps={
        "means-or-scales": (
            *(grid("guess", part) for part in PARTS),
            *(grid("superclass", part, NOT_DIGITS) for part in PARTS),
        )
    },
    primary=PRIMARY,
)
config = EXPERIMENT.config
