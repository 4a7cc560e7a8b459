"""`Network`: what an export starts from, whatever its origin. Every later step is the same code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL.Image import Image

from convexport.runtime.manifest import Accuracy, Activation, Dataset, Input, Normalization
from convexport.training import evaluate

Answers = Literal["logits", "probabilities"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about a network.

    Attributes:
        name: What the bundle is called after.
        model: The architecture: "lenet5", "torchvision:resnet18", "net.onnx".
        arguments: What the architecture was built with.
        parameters: How many values the network has learned.
        classes: Labels by language, in the order of the outputs; `en` is always there.
        input: The size that it takes, and how an image is resized to it.
        batch: The one size of batch that its graph takes, if it is fixed.
        normalization: `(pixel / 255 - mean) / std`, in the order red, green, blue.
        answers: What its outputs are. Behind probabilities there is no second softmax, and no second sigmoid.
        activation: What makes probabilities of its logits: `sigmoid` where an image may have several labels.
        thresholds: From which probability an image has each label; empty where that is 0.5 for all, or one label wins.
        dataset: What it was trained on, as far as it is known.
        accuracy: Its stated accuracy.
        sha256: Of the file that holds its weights, or of the weights themselves.
        recipe: How it was trained, if its own checkpoint says so.
        seed: The seed of that training.
        git_commit: The commit of that training.
        versions: Versions of libraries at that training.
    """

    name: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    parameters: int
    classes: dict[str, tuple[str, ...]]
    input: Input
    batch: int | None = None
    normalization: Normalization
    answers: Answers = "logits"
    activation: Activation = "softmax"
    thresholds: tuple[float, ...] = ()
    dataset: Dataset
    accuracy: Accuracy = field(default_factory=Accuracy)
    sha256: str
    recipe: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


def probabilities_of(answers: NDArray[np.float32], facts: Facts) -> NDArray[np.float32]:
    """A network's answers [N, K] as probabilities, as the shell of its graph makes them."""
    if facts.answers == "probabilities":
        return answers
    with np.errstate(invalid="ignore", over="ignore"):  # infinities become NaN, which the gate looks for
        if facts.activation == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-answers.astype(np.float64))), np.float32)
        return evaluate.softmax(answers, facts.normalization.temperature)


class Network(ABC):
    """An image classifier of any origin.

    Attributes:
        facts: The facts about it.
        remarks: What a user should know about how it was read, one line each.
        stated_accuracy: Its stated accuracy on the images that it is verified with.
    """

    facts: Facts
    remarks: tuple[str, ...] = ()
    stated_accuracy: float | None = None

    @abstractmethod
    def reference(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The origin's own probabilities, computed in float32 by the origin itself.

        Args:
            images: uint8 [N, H, W, C], red first.

        Returns:
            Probabilities float32 [N, K].
        """

    @property
    def has_transform(self) -> bool:
        """Whether the origin has a transform of its own, which nothing that was stated contradicts."""
        return False

    def transformed(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """The origin's own probabilities, through its own transform instead of our framing and normalization.

        Args:
            images: Of any size, RGB or gray as the network takes them.

        Returns:
            Probabilities float32 [N, K].
        """
        raise NotImplementedError

    @abstractmethod
    def core(self) -> onnx.ModelProto:
        """The float32 graph from normalized pixels [batch, C, H, W] to `facts.answers` [batch, K], of its own copy.

        It has one input, one output and a dynamic batch; no constant depends on a batch size.
        """

    @property
    def takes_bytes(self) -> bool:
        """Whether the origin itself normalizes: it takes pixels from 0 to 255 as they are."""
        return False

    @property
    def dead(self) -> int:
        """How many weight tensors are all zeros by mistake; 0 if unknown."""
        return 0
