"""Faults that can be planted in what is stated of a network, each with the words by which its right cause is known."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from convexport.export.diagnosis import Labeled
from convexport.export.sources.network import Network
from convexport.runtime.manifest import CROPS

LITE0 = "EfficientNet-Lite0"
NORMALIZATION = ("normalization",)


@dataclass(frozen=True)
class Subject:
    """A network, whose facts are right, with its images."""

    name: str
    network: Network
    labeled: Labeled


class Reordered(Network):
    """A network whose outputs stand in another order: output `i` was output `order[i]`."""

    def __init__(self, network: Network, order: NDArray[np.int64]) -> None:
        self._network, self._order = network, order
        self.facts = network.facts

    def reference(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        inner = copy.copy(self._network)
        inner.facts = replace(self.facts, classes=inner.facts.classes)
        return inner.reference(images)[:, self._order]

    def core(self) -> Any:
        model = self._network.core()
        graph = model.graph
        last = graph.output[0].name
        graph.initializer.append(onnx.numpy_helper.from_array(self._order, "reordered.order"))
        graph.node.append(onnx.helper.make_node("Gather", [last, "reordered.order"], ["reordered"], axis=1))
        graph.output[0].name = "reordered"
        return model


@dataclass(frozen=True)
class Fault:
    """What is stated wrongly, and by which words the right cause is known."""

    kind: str
    plant: Callable[[Subject], Subject]
    words: Callable[[Subject], tuple[str, ...]]


def stated(subject: Subject, **changes: Any) -> Subject:
    """The same network, of which something else is stated."""
    network = copy.copy(subject.network)
    network.facts = replace(network.facts, **changes)
    return replace(subject, network=network)


def normalized(mean: Sequence[float], std: Sequence[float]) -> Callable[[Subject], Subject]:
    """States this mean and std."""

    def plant(subject: Subject) -> Subject:
        channels = subject.network.facts.input.channels
        values = [tuple(one) * (channels if len(one) == 1 else 1) for one in (mean, std)]
        own = subject.network.facts.normalization
        return stated(
            subject, normalization=msgspec.structs.replace(own, mean=values[0][:channels], std=values[1][:channels])
        )

    return plant


def without_std(subject: Subject) -> Subject:
    own = subject.network.facts.normalization
    return stated(subject, normalization=msgspec.structs.replace(own, std=(1.0,) * len(own.std)))


def framed(**changes: Any) -> Callable[[Subject], Subject]:
    """States another framing."""

    def plant(subject: Subject) -> Subject:
        return stated(subject, input=msgspec.structs.replace(subject.network.facts.input, **changes))

    return plant


def reordered(order: Callable[[tuple[str, ...]], NDArray[np.int64]]) -> Callable[[Subject], Subject]:
    """Brings the outputs into another order than the labels."""

    def plant(subject: Subject) -> Subject:
        return replace(subject, network=Reordered(subject.network, order(subject.network.facts.classes["en"])))

    return plant


def other_colors(subject: Subject) -> Subject:
    """The network takes blue first; or the images are black where they were white, if there is one channel."""
    network = subject.network
    if network.facts.input.channels == 1:
        inverted = [255 - np.asarray(source) for source in subject.labeled.sources]
        return replace(subject, labeled=Labeled(inverted, subject.labeled.truth))

    class Exchanged(Reordered):
        def reference(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            asked = copy.copy(network)
            norm = self.facts.normalization
            reverse = msgspec.structs.replace(norm, mean=norm.mean[::-1], std=norm.std[::-1])
            asked.facts = replace(self.facts, normalization=reverse)
            return asked.reference(np.ascontiguousarray(images[..., ::-1]))

        def core(self) -> Any:
            model = network.core()
            graph = model.graph
            taken = graph.input[0].name
            for node in graph.node:
                for place, name in enumerate(node.input):
                    if name == taken:
                        node.input[place] = "exchanged"
            graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 0]), "exchanged.order"))
            graph.node.insert(0, onnx.helper.make_node("Gather", [taken, "exchanged.order"], ["exchanged"], axis=1))
            return model

    return replace(subject, network=Exchanged(network, np.arange(0)))


def _colors(subject: Subject) -> tuple[str, ...]:
    return ("black and white exchanged",) if subject.network.facts.input.channels == 1 else ("blue first (BGR)",)


def _crop(subject: Subject) -> tuple[str, ...]:
    size = subject.network.facts.input
    if size.framing not in CROPS:
        return (f"framing {size.framing}",)
    return (f"a crop of {size.crop:g} of the shorter side",)


def _sorted(labels: tuple[str, ...]) -> NDArray[np.int64]:
    return np.array(sorted(range(len(labels)), key=lambda index: labels[index]), np.int64)


def _shuffled(labels: tuple[str, ...]) -> NDArray[np.int64]:
    if list(_sorted(labels)) != list(range(len(labels))):
        return _sorted(labels)
    return np.random.default_rng(3).permutation(len(labels))


def _of_order(subject: Subject) -> tuple[str, ...]:
    labels = subject.network.facts.classes["en"]
    if list(_sorted(labels)) != list(range(len(labels))):
        return ("labels sorted as text",)
    return ("labels in another order",)


def half_or_imagenet(subject: Subject) -> Subject:
    """Mean and std of 0.5, or ImageNet's where 0.5 is right."""
    if subject.name == LITE0:
        return normalized([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(subject)
    return normalized([0.5], [0.5])(subject)


def other_framing(subject: Subject) -> Subject:
    """Stretched in place of cropped, padded in place of stretched."""
    cropped = subject.network.facts.input.framing in CROPS
    return framed(framing="stretch" if cropped else "pad", crop=1.0)(subject)


def _normalization(subject: Subject) -> tuple[str, ...]:
    return NORMALIZATION


def _one_off(labels: tuple[str, ...]) -> NDArray[np.int64]:
    return np.roll(np.arange(len(labels)), 1)


FAULTS = (
    Fault("channels exchanged", other_colors, _colors),
    Fault("pixels 0..1 without mean and std", normalized([0.0], [1.0]), _normalization),
    Fault("pixels 0..255", normalized([0.0], [1 / 255]), _normalization),
    Fault("mean and std of 0.5, or ImageNet's", half_or_imagenet, _normalization),
    Fault("ImageNet's mean of 0..255, no std", normalized([0.485, 0.456, 0.406], [1 / 255]), _normalization),
    Fault("std left out", without_std, _normalization),
    Fault("Fashion-MNIST's mean and std", normalized([0.2860], [0.3530]), _normalization),
    Fault("labels in another order", reordered(_shuffled), _of_order),
    Fault(
        "labels one place off",
        reordered(_one_off),
        lambda subject: ("labels one place on, as behind a class for the background",),
    ),
    Fault("share of the crop", framed(framing="crop", crop=1.0), _crop),
    Fault("stretched in place of cropped, or padded", other_framing, _crop),
    Fault(
        "channels, and no normalization",
        lambda subject: other_colors(normalized([0.0], [1.0])(subject)),
        lambda subject: (*NORMALIZATION, *_colors(subject)),
    ),
)
