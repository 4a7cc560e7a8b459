"""A network that torch runs: its answers, and its graph. All origins with a torch module use this."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from convexport.export.sources.network import Answers, Facts, Network, probabilities_of
from convexport.runtime.errors import CheckpointError, UsageError, first_line
from convexport.runtime.manifest import Activation, Input
from convexport.training import evaluate

# Low enough for ONNX Runtime 1.20 and TensorRT 10.
OPSET = 20
# The most values in one batch of a network's input: 64 images of 224 x 224.
VALUES_AT_ONCE = 64 * 3 * 224 * 224
MOST_AT_ONCE = 500


# The origin's own: an image -> normalized float32 [C, H, W], red first.
Transform = Callable[[Image], Tensor]


class TorchNetwork(Network):
    """A `Network` whose origin is a torch module from normalized float32 [N, C, H, W] to float32 [N, K]."""

    def __init__(
        self, module: nn.Module, facts: Facts, remarks: tuple[str, ...] = (), transform: Transform | None = None
    ) -> None:
        self.module = module.eval()
        self.facts = facts
        self.remarks = remarks
        self._transform = transform

    def reference(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        size, normalization = self.facts.input, self.facts.normalization
        batch = max(1, min(MOST_AT_ONCE, VALUES_AT_ONCE // (size.height * size.width * size.channels)))
        return probabilities_of(evaluate.predict(self.module, images, normalization, batch=batch), self.facts)

    @property
    def has_transform(self) -> bool:
        return self._transform is not None

    def transformed(self, images: Sequence[Image]) -> NDArray[np.float32]:
        assert self._transform is not None
        with torch.no_grad():
            rows = [self.module(self._transform(image)[None].float()) for image in images]
        return probabilities_of(torch.cat(rows).numpy(), self.facts)

    def core(self) -> onnx.ModelProto:
        return trace(self.module, self.facts.input)


class OneAnswer(nn.Module):
    """A module whose answer may be wrapped, and whose input may have blue first."""

    def __init__(self, module: nn.Module, *, bgr: bool) -> None:
        super().__init__()
        self.module = module
        self.bgr = bgr

    def forward(self, pixels: Tensor) -> Tensor:
        answer: Any = self.module(pixels.flip(1) if self.bgr else pixels)
        if isinstance(answer, Tensor):
            one_each = answer.dim() == 4 and answer.shape[2:] == (1, 1)
            return answer.flatten(1) if one_each else answer
        if hasattr(answer, "logits"):
            answer = answer.logits
        elif isinstance(answer, (dict, tuple, list)):
            answer = answer[_key_of(answer)]
        result: Tensor = answer
        return result


def _key_of(answer: Any) -> Any:
    """Where in a dictionary, tuple or list the answer is that counts."""
    if not isinstance(answer, dict):
        return 0
    return "logits" if "logits" in answer else next(iter(answer))


# What a network raises for a shape that it was not made for.
_REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, ArithmeticError, AttributeError)


def _accepts(module: nn.Module, pixels: Tensor) -> bool:
    try:
        with torch.no_grad():
            module(pixels)
    except _REFUSALS:
        return False
    return True


def classes_of(module: nn.Module, size: Input, where: str) -> int:
    """The number of classes of the module, measured with two black images.

    Raises:
        CheckpointError: It does not accept such images, or does not return one row for each.
    """
    pixels = torch.zeros(2, size.channels, size.height, size.width)
    try:
        with torch.no_grad():
            found = module.eval()(pixels)
    except _REFUSALS as error:
        if _accepts(module, pixels[:1]):
            raise CheckpointError(
                f"{where}: it accepts one image at a time, but not a batch of 2 ({first_line(error)})",
                "let it take any number of images; a reshape to a fixed size is the usual cause",
            ) from error
        raise CheckpointError(
            f"{where}: it does not accept pixels {list(pixels.shape)} ({first_line(error)})",
            "check --size, and --channels if they are gray",
        ) from error
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 2 or found.shape[1] < 2:
        shape = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise CheckpointError(
            f"{where}: for 2 images it returns {shape}, expected [2, classes] with 2 classes or more",
            "export a network that classifies images",
        )
    return int(found.shape[1])


def chosen_answer(module: OneAnswer, size: Input) -> tuple[str, ...]:
    """A remark where the module answers with several things, of which the first is taken."""
    with torch.no_grad():
        found = module.module(torch.zeros(2, size.channels, size.height, size.width))
    if hasattr(found, "logits") or not isinstance(found, (dict, tuple, list)) or len(found) < 2:
        return ()
    key = _key_of(found)
    if key == "logits":
        return ()
    if isinstance(found, dict):
        return (f"output      {key}, the first of {', '.join(map(str, found))}",)
    return (f"output      the first of {len(found)} that it returns",)


def answers_of(module: nn.Module, size: Input, stated: Activation | None, where: str) -> tuple[Answers, Activation]:
    """What its outputs are, found out on noise. Raises `UsageError` where another activation is stated."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, size.channels, size.height, size.width, generator=generator)
    with torch.no_grad():
        found = module.eval()(pixels).float().numpy()
    if found.min() < 0 or found.max() > 1:
        return "logits", stated or "softmax"
    graph = trace(module, size).graph
    return kind_of_answers(found, stated, where, last_operator(graph, graph.output[0].name))


# What a network computes last where its answers have no bounds, whatever those to some images are.
_UNBOUNDED = ("Conv", "Gemm", "MatMul", "Add", "Sub", "Relu")
# An average is bounded as its values are.
_BETWEEN = (
    *("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Transpose", "Dropout"),
    *("GlobalAveragePool", "AveragePool", "ReduceMean"),
)


def last_operator(graph: onnx.GraphProto, output: str) -> str:
    """The kind of the last node that computes something for an output; empty if there is none."""
    made_by = {name: node for node in graph.node for name in node.output}
    while output in made_by and made_by[output].op_type in _BETWEEN:
        output = made_by[output].input[0]
    return made_by[output].op_type if output in made_by else ""


def kind_of_answers(
    found: NDArray[np.float32], stated: Activation | None, where: str, last: str
) -> tuple[Answers, Activation]:
    """What rows [N, K] are: logits, or the probabilities of a softmax, which sum to 1, or of a sigmoid.

    Args:
        found: The answers to some images.
        stated: The activation as a person states it.
        where: The network's name in errors.
        last: The last operator of its graph. Weights that are all alike give answers between 0 and 1 as well.

    Raises:
        UsageError: They show another activation than is stated.
    """
    sums_to_1 = np.allclose(found.sum(axis=1), 1, atol=1e-3)
    if found.min() < 0 or found.max() > 1 or (last in _UNBOUNDED and not sums_to_1):
        return "logits", stated or "softmax"
    seen: Activation = "softmax" if sums_to_1 else "sigmoid"
    if stated not in (None, seen):
        sums = "sum to 1, as behind a softmax" if seen == "softmax" else "do not sum to 1, as behind a sigmoid"
        raise UsageError(
            f"--activation {stated}: the answers of {where} lie between 0 and 1 and {sums}",
            "export a network that ends in logits, or leave --activation out",
        )
    return "probabilities", seen


def trace(module: nn.Module, size: Input) -> onnx.ModelProto:
    """torch's own export: normalized float32 [batch, C, H, W] -> the module's answer. Two traces give the same graph.

    Raises:
        CheckpointError: torch cannot export it.
    """
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, size.channels, size.height, size.width)
    with torch.no_grad(), warnings.catch_warnings():
        # torch's exporter and users' networks may call deprecated parts of torch.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["answer"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, torch.onnx.OnnxExporterError) as error:
            reason = first_line(error.__cause__ or error)
            raise CheckpointError(
                f"torch cannot export this network as ONNX ({reason})",
                "let forward() not branch on values of the image, or export an ONNX file yourself and name that",
            ) from error
    assert program is not None
    model = onnx.ModelProto()
    model.CopyFrom(program.model_proto)
    return model
