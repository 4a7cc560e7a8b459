"""Recipes: which network is trained on which data, how long and how. Experiments that lost: docs/experiments.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from convexport.runtime.errors import UsageError
from convexport.training.augment import Augmentation

# `long` is for a GPU, and exists only for networks that were measured on one.
Length = Literal["quick", "full", "long"]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained on one data set.

    `learning_rate` is the peak of one cycle: linear from `start` of it over the first `warmup` share of all steps,
    linear to `end` of it over the rest (Smith and Topin 2018); `cosine` falls from the peak to 0 along half a cosine
    (Loshchilov and Hutter 2017); `constant` keeps it. `average` is the decay per step of
    an exponential moving average of the weights, 0 for none; the average is what is evaluated and kept.
    `validation` is the share of every class of the training set that chooses the best epoch and the temperature.
    `identity` starts same-width convolutions near the identity (dirac; Jordan 2024, airbench).
    `teachers` are networks, trained on the same data before, whose mean probabilities are `teaching` of the target; the
    label is the rest of it (Hinton, Vinyals and Dean 2015, at temperature 1).
    `source` names where it comes from, `measured` the result with n, machine and date, for those in `RECIPES`.
    """

    epochs: int
    learning_rate: float
    batch: int = 128
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    side_rate: float = 0.02
    muon_decay: float = 0.0
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: float = 0.2
    start: float = 0.05
    end: float = 0.0
    label_smoothing: float = 0.0
    average: float = 0.0
    identity: bool = False
    validation: float = 0.05
    augmentation: Augmentation = field(default_factory=Augmentation)
    teachers: tuple[str, ...] = ()
    teaching: float = 0.0
    source: str = ""
    measured: str = ""

    def describe(self) -> dict[str, Any]:
        """The recipe as plain values, for the checkpoint's header."""
        # Without teachers, no word of them: the run is the same as before recipes could name any.
        silent = {"measured"} if self.teachers else {"measured", "teachers", "teaching"}
        plain = {**asdict(self), "teachers": list(self.teachers)}
        return {key: value for key, value in plain.items() if key not in silent}


def with_current_keys(described: dict[str, Any]) -> dict[str, Any]:
    """A described recipe with today's keys: version 0.1 wrote `optimiser`."""
    return {"optimizer" if key == "optimiser" else key: value for key, value in described.items()}


# The share of the target that teachers have where a user names them. It was not tuned.
TEACHING = 0.7

# Peaks for optimizers that a user names in place of a recipe's own.
ADAPTIVE_RATES = {"adam": 1e-3, "adagrad": 1e-2}

_ALTERNATING = Augmentation(flip="alternating", translate=2)
_VGG_SOURCE = (
    "kuangliu/pytorch-cifar's VGG; alternating flips, reflected translation, identity start (airbench) and Muon: "
    "Jordan 2024"
)
_VGG_QUICK = Recipe(
    epochs=2,
    learning_rate=0.03,
    batch=256,
    optimizer="muon",
    muon_decay=0.02,
    identity=True,
    augmentation=_ALTERNATING,
    source=_VGG_SOURCE,
)
# Muon's rate rises with the root of the batch; its decay is chosen so that the weights decay by about the same share
# per epoch.
_VGG_LONG = replace(
    _VGG_QUICK,
    learning_rate=0.04,
    batch=512,
    side_rate=0.04,
    muon_decay=0.03,
    augmentation=Augmentation(flip="alternating", translate=4, cutmix=0.5),
    source=f"{_VGG_SOURCE}; CutMix in half of the batches (Yun et al. 2019)",
)
_COPIES = "10,000 test images (JPEG copies)"


def _vgg(quick: str, full: str, long: Recipe) -> dict[Length, Recipe]:
    # No label smoothing: one temperature cannot correct what it does to confidence (docs/experiments.md).
    return {
        "quick": replace(_VGG_QUICK, measured=quick),
        "full": replace(_VGG_QUICK, epochs=8, measured=full),
        "long": long,
    }


def _vgg_long(epochs: int, accuracy: str, time: str, **changes: Any) -> Recipe:
    measured = f"{accuracy} of {_COPIES}, n = 1, {time} on one NVIDIA H200, 2026-11-27"
    return replace(_VGG_LONG, epochs=epochs, measured=measured, **changes)


_DISTORTED = Augmentation(rotate=10, scale=0.1, shear=0.1, shift=2)
_LENET_SOURCE = "LeCun et al. 1998, section III.B (distortions); one cycle of Smith and Topin 2018"
_COURSE = "the French course pages (SGD, no augmentation), with a validation split and one cycle"

RECIPES: dict[tuple[str, str], dict[Length, Recipe]] = {
    ("lenet5", "mnist"): {
        "quick": Recipe(
            epochs=5,
            learning_rate=0.1,
            weight_decay=1e-4,
            source=_LENET_SOURCE,
            measured="99.08 % of 10,000 test images, n = 1, 47 s on two cores with AMX, 2026-11-22",
        ),
        "full": Recipe(
            epochs=20,
            learning_rate=0.15,
            weight_decay=1e-4,
            label_smoothing=0.05,
            augmentation=_DISTORTED,
            source=_LENET_SOURCE,
            measured="99.47 % of 10,000 test images, n = 1, 3 min 10 s on two cores with AMX, 2026-11-22",
        ),
    },
    ("lenet5", "fashion-mnist"): {
        "quick": Recipe(
            epochs=5,
            learning_rate=0.1,
            weight_decay=1e-4,
            source=_LENET_SOURCE,
            measured="89.96 % of 10,000 test images, n = 1, 40 s on two shared cores with AMX, 2026-11-22",
        ),
        "full": Recipe(
            epochs=60,
            learning_rate=0.1,
            weight_decay=1e-4,
            augmentation=Augmentation(flip="random", translate=1, pad="zero"),
            source=_LENET_SOURCE,
            measured="91.78 % of 10,000 test images, n = 1, 16 min 21 s on two shared cores with AMX, 2026-11-22",
        ),
    },
    ("lenet5", "digits"): {
        "quick": Recipe(
            epochs=15,
            learning_rate=0.1,
            batch=64,
            weight_decay=1e-4,
            validation=0.1,
            source=_LENET_SOURCE,
            measured="96.94 % (96.10 to 97.21) of 359 test images, median of n = 5, 9 CPU s on one thread, 2026-11-22",
        ),
        "full": Recipe(
            epochs=100,
            learning_rate=0.1,
            batch=64,
            weight_decay=1e-4,
            validation=0.1,
            augmentation=Augmentation(rotate=10, scale=0.1, shift=1),
            source=_LENET_SOURCE,
            measured="99.16 % (96.66 to 99.72) of 359 test images, median of n = 5, 39 CPU s on one thread, 2026-11-22",
        ),
    },
    # The first three ran beside each other on one GPU, so each could have been faster alone.
    ("vgg11", "cifar10"): _vgg(
        quick=f"83.13 % of {_COPIES}, n = 1, 9 min 56 s on two shared cores with AMX, 2026-11-22",
        full=f"87.68 % of {_COPIES}, n = 1, 30 min 23 s on two shared cores with AMX, 2026-11-22",
        long=_vgg_long(130, "90.72 %", "97 s"),
    ),
    ("vgg13", "cifar10"): _vgg(
        quick=f"83.95 % of {_COPIES}, n = 1, 8 min 57 s on two shared cores with AMX, 2026-11-22",
        full=f"89.16 % of {_COPIES}, n = 1, 37 min 35 s on two shared cores with AMX, 2026-11-22",
        long=_vgg_long(82, "91.56 %", "79 s"),
    ),
    ("vgg16", "cifar10"): _vgg(
        quick=f"84.01 % of {_COPIES}, n = 1, 11 min 22 s on two shared cores with AMX, 2026-11-22",
        full=f"89.01 % of {_COPIES}, n = 1, 40 min 48 s on two cores with AMX, 2026-11-22",
        long=_vgg_long(58, "91.18 %", "80 s"),
    ),
    ("vgg19", "cifar10"): _vgg(
        quick=f"83.19 % of {_COPIES}, n = 1, 16 min 2 s on two shared cores with AMX, 2026-11-22",
        full=f"88.63 % of {_COPIES}, n = 1, 73 min 16 s on two shared cores with AMX, 2026-11-22",
        long=_vgg_long(
            218, "92.51 %", "176 s", muon_decay=0.01, teachers=("vgg11", "vgg13", "vgg16"), teaching=TEACHING
        ),
    ),
    # Its temperature helps little, so it must be fitted on many images in order to do no harm.
    ("softmax", "mnist"): {
        "quick": Recipe(
            epochs=5,
            learning_rate=0.02,
            weight_decay=0.0,
            validation=0.15,
            source=_COURSE,
            measured="92.40 % of 10,000 test images, n = 1, 10 CPU s on one thread, 2026-11-22",
        ),
        "full": Recipe(
            epochs=15,
            learning_rate=0.02,
            weight_decay=0.0,
            validation=0.15,
            source=_COURSE,
            measured="92.54 % of 10,000 test images, n = 1, 16 CPU s on one thread, 2026-11-22",
        ),
    },
    ("mlp", "mnist"): {
        "quick": Recipe(
            epochs=5,
            learning_rate=0.1,
            weight_decay=1e-4,
            source=_COURSE,
            measured="98.09 % of 10,000 test images, n = 1, 19 CPU s on one thread, 2026-11-22",
        ),
        "full": Recipe(
            epochs=20,
            learning_rate=0.1,
            weight_decay=1e-4,
            augmentation=_DISTORTED,
            source=_COURSE,
            measured="98.90 % of 10,000 test images, n = 1, 68 CPU s on one thread, 2026-11-22",
        ),
    },
    ("cnn-mnist", "mnist"): {
        "quick": Recipe(
            epochs=5,
            learning_rate=0.05,
            weight_decay=1e-4,
            source=_COURSE,
            measured="98.80 % of 10,000 test images, n = 1, 45 CPU s on one thread, 2026-11-22",
        ),
        "full": Recipe(
            epochs=15,
            learning_rate=0.05,
            weight_decay=1e-4,
            source=_COURSE,
            measured="99.04 % of 10,000 test images, n = 1, 149 CPU s on one thread, 2026-11-22",
        ),
    },
    ("cnn-fashion", "fashion-mnist"): {
        "quick": Recipe(
            epochs=5,
            learning_rate=0.05,
            source=_COURSE,
            measured="90.88 % of 10,000 test images, n = 1, 149 CPU s on one thread, 2026-11-22",
        ),
        "full": Recipe(
            epochs=20,
            learning_rate=0.05,
            label_smoothing=0.05,
            augmentation=Augmentation(flip="random", translate=1, pad="zero"),
            source=_COURSE,
            measured="92.26 % of 10,000 test images, n = 1, 775 CPU s on one thread, 2026-11-22",
        ),
    },
    ("cnn-cifar10", "cifar10"): {
        "quick": Recipe(
            epochs=5,
            learning_rate=0.05,
            source=_COURSE,
            measured=f"71.11 % of {_COPIES}, n = 1, 192 CPU s on one thread, 2026-11-22",
        ),
        "full": Recipe(
            epochs=15,
            learning_rate=0.05,
            augmentation=_ALTERNATING,
            source=_COURSE,
            measured=f"75.92 % of {_COPIES}, n = 1, 6 min 27 s on two shared cores with AMX, 2026-11-22",
        ),
    },
    ("cnn-keras", "cifar10"): {
        "quick": Recipe(
            epochs=5,
            learning_rate=0.05,
            source=_COURSE,
            measured=f"73.56 % of {_COPIES}, n = 1, 4 min 39 s on two shared cores with AMX, 2026-11-22",
        ),
        "full": Recipe(
            epochs=15,
            learning_rate=0.05,
            augmentation=_ALTERNATING,
            source=_COURSE,
            measured=f"80.15 % of {_COPIES}, n = 1, 14 min 6 s on two shared cores with AMX, 2026-11-22",
        ),
    },
}

# For a network on a data set without its own recipe. Nothing was measured with it.
_PLAIN: dict[Length, Recipe] = {
    "quick": Recipe(epochs=5, learning_rate=0.05, source="a default: there is no recipe for this network and data set"),
    "full": Recipe(
        epochs=30,
        learning_rate=0.05,
        label_smoothing=0.05,
        source="a default: there is no recipe for this network and data set",
    ),
}


def find(model: str, dataset: str, length: str) -> Recipe:
    """The recipe for `model` on `dataset`. Raises `UsageError` for an unknown length."""
    table = RECIPES.get((model, dataset), _PLAIN)
    for name, recipe in table.items():
        if name == length:
            return recipe
    raise UsageError.unknown("recipe", length, table)
