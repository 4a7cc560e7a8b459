"""Facts that the user states about a network that does not contain them: labels, framing, normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from convexport.runtime.errors import UsageError
from convexport.runtime.manifest import CROPS, Activation, Filter, Framing, Input, Normalization
from convexport.runtime.text import counted

Pixels = Literal["0..1", "0..255", "-1..1"]
Channels = Literal["rgb", "bgr", "gray"]
IN_WORDS = "give --mean and --std, or --pixels 0..1, 0..255 or -1..1 if only the range matters"


@dataclass(frozen=True)
class Foreign:
    """The stated facts of a network from another project; None means not stated.

    Attributes:
        classes: Labels in the order of the outputs; empty if none were stated.
        mean: A value for each channel, in the order of the network's channels, in units of `pixels`.
        std: Likewise.
        size: Height and width of its images.
        crop: The share of the shorter side that the framing `crop` keeps.
        filter: The interpolation.
        framing: How an image is fitted to the network's shape.
        pixels: The range of pixels that `mean` and `std` are of; alone, the range that the network takes.
        channels: The order of its channels, or gray.
        arguments: The arguments of the function that makes it.
        output: Which of several outputs is the answer.
        accuracy: Its stated accuracy on the images that it is verified with.
        state: Which of several state dicts in a file.
        activation: What makes probabilities of its logits: `sigmoid` where an image may have several labels.
        thresholds: From which probability an image has each of several labels: a value for all, or one for each.
    """

    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    crop: float | None = None
    filter: Filter | None = None
    framing: Framing | None = None
    pixels: Pixels | None = None
    channels: Channels | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    output: str | None = None
    accuracy: float | None = None
    state: str | None = None
    activation: Activation | None = None
    thresholds: tuple[float, ...] = ()

    @property
    def prepares(self) -> bool:
        """Whether it says anything about how an image becomes the network's input."""
        own = (self.mean, self.std, self.size, self.crop, self.filter, self.framing, self.pixels, self.channels)
        return any(one is not None for one in own)

    @property
    def bgr(self) -> bool:
        """Whether the network takes blue first."""
        return self.channels == "bgr"


@dataclass(frozen=True)
class Known:
    """Facts from the origin itself, named as in `Foreign`. `mean` and `std` are for pixels from 0 to 1, red first."""

    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    crop: float = 1.0
    filter: Filter = "bicubic"
    framing: Framing = "crop"
    channels: Literal[1, 3] | None = None
    bgr: bool = False
    fixed: bool = False  # whether it takes no other size


def input_of(stated: Foreign, known: Known, where: str) -> Input:
    """The size and framing, as stated, else from the origin. Raises `UsageError` if there is no size."""
    size = stated.size or known.size
    if size is None:
        raise UsageError(f"{where} does not say how large its images are", "give it with --size, as in --size 224")
    if known.fixed and known.size is not None and stated.size not in (None, known.size):
        raise UsageError(
            f"--size {' '.join(map(str, size))}: {where} expects {known.size[0]} x {known.size[1]}", "leave it out"
        )
    crop = known.crop if stated.crop is None else stated.crop
    if not 0 < crop <= 1:
        raise UsageError(f"--crop {crop:g}: expected a share of the shorter side, above 0 and at most 1")
    framing = stated.framing or ("crop" if stated.crop is not None else known.framing)
    if framing not in CROPS and stated.crop is not None:
        raise UsageError(f"--crop {crop:g} has no effect with --framing {framing}", "leave one of them out")
    # Other people's networks were trained on images that were cut at whole pixels.
    cut = framing in CROPS
    return Input(
        height=size[0],
        width=size[1],
        channels=_channels(stated, known, where),
        framing="resize-crop" if cut else framing,
        crop=crop if cut else 1.0,
        filter=stated.filter or known.filter,
    )


def _channels(stated: Foreign, known: Known, where: str) -> Literal[1, 3]:
    numbers = {len(values) for values in (stated.mean, stated.std) if values is not None}
    wanted: set[int] = numbers | ({1 if stated.channels == "gray" else 3} if stated.channels else set())
    if known.channels is not None:
        wanted.add(known.channels)
    if not wanted:
        return 3
    if wanted not in ({1}, {3}):
        mean, std, channels = stated.mean, stated.std, stated.channels
        raise UsageError(
            f"{where}: --mean {_listed(mean)}, --std {_listed(std)}, "
            f"channels {channels or known.channels or 'not stated'}, expected the same number, 1 or 3, of each",
            "give --mean and --std one number for gray images, three for images in color",
        )
    return 1 if wanted == {1} else 3


def _listed(values: tuple[float, ...] | None) -> str:
    return "not stated" if values is None else str(list(values))


def normalization_of(stated: Foreign, known: Known, channels: int, where: str) -> Normalization:
    """Mean and std for pixels from 0 to 1, red first. Raises `UsageError` if they are unknown or implausible."""
    if (stated.mean is None) != (stated.std is None):
        raise UsageError(f"{where}: one of --mean and --std is missing", "give both")
    if stated.mean is not None and stated.std is not None:
        mean, std = _in_units(stated.mean, stated.std, stated.pixels or "0..1")
    elif stated.pixels is not None:
        low, high = {"0..1": (0.0, 1.0), "0..255": (0.0, 1 / 255), "-1..1": (0.5, 0.5)}[stated.pixels]
        mean, std = (low,) * channels, (high,) * channels
    elif known.mean is not None and known.std is not None:
        return Normalization(mean=known.mean, std=known.std)
    else:
        raise UsageError(f"{where} does not say how its pixels are normalized", IN_WORDS)
    if stated.bgr:
        mean, std = mean[::-1], std[::-1]
    return Normalization(mean=mean, std=std)


def thresholds_of(stated: Foreign, activation: Activation, outputs: int) -> tuple[float, ...]:
    """A threshold for each label, or none where 0.5 holds for all. Raises `UsageError` for another number of them."""
    values = stated.thresholds
    if not values:
        return ()
    if activation == "softmax":
        raise UsageError("--thresholds: the network gives each image one label", "state --activation sigmoid, or none")
    if len(values) not in {1, outputs}:
        raise UsageError(f"--thresholds: {len(values)} values, expected one, or one for each of {outputs} labels")
    if not all(0 < value < 1 for value in values):
        raise UsageError(f"--thresholds {_words(values)}: expected numbers between 0 and 1")
    return values * outputs if len(values) == 1 else values


def _in_units(
    mean: tuple[float, ...], std: tuple[float, ...], pixels: Pixels
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels from 0 to 1. Raises `UsageError` if the numbers belong to another range."""
    given = f"--mean {_words(mean)} --std {_words(std)}"
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise UsageError(f"{given}: expected numbers, std above 0")
    if pixels == "-1..1":
        raise UsageError(f"{given} with --pixels -1..1, which is a mean and std of 0.5", "leave one of them out")
    if pixels == "0..255":
        if max(mean) <= 1 and max(std) <= 1:
            raise UsageError(
                f"{given} with --pixels 0..255: they look like those of pixels from 0 to 1",
                f"leave out --pixels, or give --mean {_words(255 * v for v in mean)} "
                f"--std {_words(255 * v for v in std)}",
            )
        return tuple(value / 255 for value in mean), tuple(value / 255 for value in std)
    if max(mean) > 1 or min(mean) < 0 or max(std) > 2:
        raise UsageError(
            f"{given}: pixels are from 0 to 1 here, and these are outside",
            f"if the network takes pixels from 0 to 255, add --pixels 0..255; if from 0 to 1, give "
            f"--mean {_words(v / 255 for v in mean)} --std {_words(v / 255 for v in std)}",
        )
    return mean, std


def _words(values: Any) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def classes_of(stated: Foreign, known: Known, outputs: int, where: str) -> dict[str, tuple[str, ...]]:
    """The labels, as many as there are outputs. Raises `UsageError` with both numbers if they differ."""
    classes = stated.classes or known.classes
    if not classes:
        raise UsageError(
            f"{where} has {counted(outputs, 'class')} and does not name them",
            "name them with --classes FILE, one label on each line"
            + (", or with --classes imagenet" if outputs == 1000 else ""),
        )
    if len(classes) != outputs:
        hint = "give one label for each of its outputs"
        if len(classes) + 1 == outputs:
            hint = "it may have a class for the background, often the first one, which needs a label too"
        source = "--classes has" if stated.classes else f"{where} names"
        raise UsageError(
            f"{source} {counted(len(classes), 'label')}, but {where} has {counted(outputs, 'class')}", hint
        )
    return {"en": classes}
