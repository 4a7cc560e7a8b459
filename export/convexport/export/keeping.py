"""Which nodes have to stay in float32 so that a precision keeps to its limits: found by overflow and by bisection."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convexport.export.element_types import COMPUTE
from convexport.export.limits import FP16_HEADROOM, Limits
from convexport.export.passes.at_once import batches
from convexport.export.passes.describe import INPUT, OUTPUT
from convexport.export.passes.shell import PREFIX
from convexport.export.passes.storage import FP16_MAX, Fp16Emulation
from convexport.runtime.devices import import_library

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
# A search asks so often at most; each time a graph is made and run.
MOST_TRIALS = 80
_BATCH, _ROUNDS = 16, 5
SEARCHED_IMAGES = 64


@dataclass(frozen=True)
class Goal:
    """What a graph is held against.

    Attributes:
        images: uint8 [N, H, W, C].
        probabilities: The origin's answers to them, float32 [N, K].
        truth: The class of each, int64 [N]; None where it is not known.
        limits: What the precision may differ.
    """

    images: Images
    probabilities: Probabilities
    truth: NDArray[np.int64] | None
    limits: Limits

    def first(self, count: int) -> Goal:
        """On some of the images, spread over them."""
        rows = np.unique(np.linspace(0, len(self.images) - 1, min(count, len(self.images))).round().astype(int))
        truth = None if self.truth is None else self.truth[rows]
        return Goal(self.images[rows], self.probabilities[rows], truth, self.limits)

    def loss(self, found: Probabilities) -> float:
        """The larger one of the accuracy that is lost and of what the origin itself expects to be lost."""
        lost = expected_loss(found, self.probabilities)
        if self.truth is None:
            return lost
        right = (self.probabilities.argmax(axis=1) == self.truth).mean()
        return max(lost, float(right - (np.nan_to_num(found, nan=-1).argmax(axis=1) == self.truth).mean()))

    def holds(self, found: Probabilities) -> bool:
        """Whether answers are within the limits: the loss, and the differences that the gate allows."""
        differences = np.abs(np.nan_to_num(found, nan=-1) - self.probabilities)
        limits = self.limits
        near = differences.max() <= limits.max_difference and differences.mean() <= limits.mean_difference
        return bool(near and self.loss(found) <= self.allowed)

    @property
    def allowed(self) -> float:
        """What `loss` may be; one image always."""
        return max(self.limits.accuracy_loss, 1 / len(self.images)) + 1e-9


def expected_loss(found: Probabilities, origin: Probabilities) -> float:
    """The accuracy that the origin itself expects to be lost by the answers that differ from its own.

    For each image it is the origin's probability of its own answer, less its probability of the other answer. A change
    of mind between two classes that are alike to the origin costs nothing, one that it was sure of costs one image.
    """
    rows = np.arange(len(origin))
    other = np.nan_to_num(found, nan=-1.0).argmax(axis=1)
    return float((origin.max(axis=1) - origin[rows, other]).mean())


def resemblance(found: Probabilities, origin: Probabilities) -> float:
    """How much of what tells the images apart is left: 1 less the share of the variance of log p that differs.

    0 is what one answer for all images has, the origin's average.
    """
    ours, theirs = (np.log(np.clip(np.nan_to_num(one.astype(np.float64)), 1e-6, 1)) for one in (origin, found))
    variance = float(((ours - ours.mean(axis=0)) ** 2).sum())
    return 1.0 - float(((theirs - ours) ** 2).sum()) / variance if variance > 0 else 1.0


def smallest(names: list[str], passes: Callable[[Collection[str]], bool]) -> tuple[str, ...]:
    """The smallest part of `names` that still passes, as far as leaving out halves, quarters and so on shows it.

    Args:
        names: In the order of the graph; all of them together pass.
        passes: Whether a part passes.
    """
    kept, size, trials = list(names), max(len(names) // 2, 1), 0
    while trials < MOST_TRIALS:
        removed = False
        start = 0
        while start < len(kept) and trials < MOST_TRIALS:
            rest = kept[:start] + kept[start + size :]
            trials += 1
            if passes(rest):
                kept, removed = rest, True
            else:
                start += size
        if size == 1 and not removed:
            break
        size = max(size // 2, 1)
    return tuple(kept)


def fewest(ranked: list[str], passes: Callable[[Collection[str]], bool]) -> tuple[str, ...]:
    """The fewest names from the front that pass, by bisection; all of them where nothing less does."""
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(ranked[:middle]) else (middle + 1, high)
    return tuple(ranked[:low])


def half_nodes(base: bytes, make: Callable[[Collection[str]], bytes], goal: Goal) -> tuple[str, ...]:
    """The nodes that stay float32 in an FP16 graph: those that make or read what overflows, else by bisection alone.

    Args:
        base: The float32 graph.
        make: Makes the FP16 graph with some nodes in float32.
        goal: What it is held against.

    Returns:
        The nodes; none where FP16 suffices.
    """
    few = goal.first(SEARCHED_IMAGES)

    def passes(keep: Collection[str]) -> bool:
        emulation = Fp16Emulation(make(keep), base)
        found = emulation(few.images)
        allowed = max(int((goal.limits.disagreement or 0.0) * len(few.images)), 1)
        flips = int((found.argmax(axis=1) != few.probabilities.argmax(axis=1)).sum())
        return bool(
            emulation.headroom >= FP16_HEADROOM
            and np.isfinite(found).all()
            and flips <= allowed
            and np.abs(found - few.probabilities).max() <= goal.limits.max_difference
        )

    if passes(()):
        return ()
    nodes = [node.name for node in onnx.load_from_string(base).graph.node if not node.name.startswith(PREFIX)]
    large = _beyond(base, few.images)
    start = [name for name in nodes if name in large]
    return smallest(start if start and passes(start) else nodes, passes)


def _beyond(base: bytes, images: Images) -> set[str]:
    """Nodes that make or read a value which FP16 cannot hold with its headroom, or weights of that kind."""
    model = onnx.load_from_string(base)
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    floats = [value.name for value in inferred.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    made = {name for node in graph.node for name in node.output}
    floats = [name for name in floats if name in made and not name.startswith(PREFIX)]
    for number, name in enumerate(floats):
        graph.node.append(helper.make_node("Abs", [name], [f"keeping.{number}.size"]))
        graph.node.append(helper.make_node("ReduceMax", [f"keeping.{number}.size"], [f"keeping.{number}"], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"keeping.{number}", TensorProto.FLOAT, []))
    run = _session(model.SerializeToString())
    largest = np.zeros(len(floats))
    for part in _parts(run, images):
        found = run.run([f"keeping.{n}" for n in range(len(floats))], {INPUT: part})
        largest = np.maximum(largest, np.array(found, np.float64))
    limit = FP16_MAX / FP16_HEADROOM
    beyond = {name for name, value in zip(floats, largest, strict=True) if not value <= limit}
    beyond |= {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and np.abs(numpy_helper.to_array(tensor)).max(initial=0) > FP16_MAX
    }
    return {node.name for node in graph.node if beyond & {*node.input, *node.output}}


def int8_nodes(base: bytes, quantized: bytes, goal: Goal) -> tuple[str, ...]:
    """The fewest layers of an INT8 graph that have to stay float for the loss to be within its limit.

    They are ranked by what each of them costs when it alone is quantized, and taken from the dearest on. Where all of
    them do not suffice, additions and poolings stay float as well.
    """
    model = onnx.load_from_string(quantized)
    scaled = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    nodes = [node for node in model.graph.node if scaled & {*node.input} and node.op_type != "QuantizeLinear"]
    layers = [node.name for node in nodes if node.op_type in COMPUTE]

    def passes(keep: Collection[str]) -> bool:
        return goal.holds(answers(dequantized(quantized, base, keep), goal.images))

    others = () if passes(layers) else tuple(node.name for node in nodes if node.op_type not in COMPUTE)
    few = goal.first(SEARCHED_IMAGES // 2)
    costs = {}
    for layer in layers:
        kept = [*others, *(other for other in layers if other != layer)]
        found = answers(dequantized(quantized, base, kept), few.images)
        costs[layer] = _divergence(found, few.probabilities)
    ranked = sorted(layers, key=lambda layer: -costs[layer])
    return others + fewest(ranked, lambda keep: passes([*others, *keep]))


def dequantized(quantized: bytes, base: bytes, layers: Collection[str]) -> bytes:
    """A QDQ graph, some layers of which compute in float again, with the weights of the float graph."""
    model = onnx.load_from_string(quantized)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in onnx.load_from_string(base).graph.initializer}
    there = {tensor.name for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.name not in layers:
            continue
        for place, name in enumerate(node.input):
            source = made_by.get(name)
            if source is None or source.op_type != "DequantizeLinear":
                continue
            before = made_by.get(source.input[0])
            if before is not None and before.op_type == "QuantizeLinear":
                node.input[place] = before.input[0]
                continue
            own = source.input[0].removesuffix("_quantized")
            if own in weights:
                node.input[place] = f"{own}.float"
                if node.input[place] not in there:
                    weights[own].name = node.input[place]
                    graph.initializer.append(weights[own])
                    there.add(node.input[place])
    _leave_out_unread(graph)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _leave_out_unread(graph: onnx.GraphProto) -> None:
    """Leaves out nodes and weights whose results nothing reads any more."""
    read = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if read & {*node.output}:
            nodes.append(node)
            read |= {*node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)


def answers(data: bytes, images: Images) -> Probabilities:
    """A graph's probabilities."""
    run = _session(data)
    parts = [run.run([OUTPUT], {INPUT: part})[0] for part in _parts(run, images)]
    return np.concatenate(parts)[: len(images)]


def seconds(data: bytes, images: Images) -> float:
    """How long a graph takes for one batch on this CPU: the shortest of some rounds."""
    run = _session(data)
    part = next(_parts(run, images))
    times = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        run.run([OUTPUT], {INPUT: part})
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _parts(run: Any, images: Images) -> Iterator[Images]:
    batch = run.get_inputs()[0].shape[0]
    return batches(images, _BATCH, batch if isinstance(batch, int) else None)


def _divergence(found: Probabilities, origin: Probabilities) -> float:
    """The mean Kullback-Leibler divergence of the answers from the origin's."""
    ours, theirs = (np.clip(one.astype(np.float64), 1e-9, 1) for one in (origin, found))
    return float((ours * np.log(ours / theirs)).sum(axis=1).mean())


def _session(data: bytes) -> Any:
    ort = import_library("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
