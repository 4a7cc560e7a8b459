"""Origin `FILE.onnx`: a graph that another tool wrote. The file itself, run by ONNX Runtime, is the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convexport.export.passes.dynamic_batch import make_batch_dynamic
from convexport.export.passes.names import rename_values
from convexport.export.passes.storage import widen
from convexport.export.sources import stated as facts_stated
from convexport.export.sources.foreign import data_of, name_of
from convexport.export.sources.network import Facts, Network, probabilities_of
from convexport.export.sources.onnx_reading import read_model
from convexport.export.sources.stated import Foreign, Known
from convexport.export.sources.torch_module import kind_of_answers, last_operator
from convexport.runtime.backends.onnxruntime import reason_of
from convexport.runtime.devices import import_library
from convexport.runtime.errors import CheckpointError, UsageError
from convexport.runtime.manifest import Input
from convexport.runtime.text import counted
from convexport.training import evaluate

_TYPES: dict[int, Any] = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.UINT8: np.uint8}
_PROOF = (1, 2, 3, 7)
_ALLOWED, _ALLOWED_HALF = 1e-4, 1e-2
_ERRORS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")


@dataclass(frozen=True)
class Signature:
    """The form of the file's input and output.

    Attributes:
        input: The name of its input.
        output: The name of the output that holds the answer.
        layout: `NCHW` or `NHWC`.
        dtype: The element type of its input.
        size: Height and width; None if they are dynamic.
        channels: 1 or 3.
        batch: The batch size that it was made for; None if it is dynamic.
        bgr: Whether it takes blue first.
    """

    input: str
    output: str
    layout: str
    dtype: Any
    size: tuple[int, int] | None
    channels: int
    batch: int | None
    bgr: bool = False


class OnnxNetwork(Network):
    """A `Network` whose origin is an ONNX file."""

    def __init__(self, data: bytes, core: onnx.ModelProto, signature: Signature, facts: Facts) -> None:
        self.facts = facts
        self._core = core.SerializeToString()
        self._run = Runner(data, signature)

    def reference(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return probabilities_of(self._run(normalized(images, self.facts)), self.facts)

    def core(self) -> onnx.ModelProto:
        return onnx.load_from_string(self._core)

    @property
    def takes_bytes(self) -> bool:
        return self._run.signature.dtype is np.uint8


def normalized(images: NDArray[np.uint8], facts: Facts) -> NDArray[np.float32]:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W], as the shell of the graph computes it."""
    mean, std = (np.array(values, np.float64) for values in (facts.normalization.mean, facts.normalization.std))
    offset, scale = (255 * mean).astype(np.float32), (1 / (255 * std)).astype(np.float32)
    pixels = (images.astype(np.float32) - offset) * scale
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


class Runner:
    """The unchanged file: normalized float32 [N, C, H, W] in, its answers float32 [N, K] out."""

    def __init__(self, data: bytes, signature: Signature) -> None:
        self.signature = signature
        ort = import_library("onnxruntime")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its messages are in its exceptions, too
        state = import_library("onnxruntime.capi.onnxruntime_pybind11_state")
        self._errors = tuple(getattr(state, name) for name in _ERRORS)
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            raise CheckpointError(f"ONNX Runtime cannot run it ({reason_of(error)})") from error

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        signature = self.signature
        batch = signature.batch or 32
        rows = [self._one(pixels[start : start + batch], batch) for start in range(0, len(pixels), batch)]
        return np.concatenate(rows)

    def _one(self, pixels: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
        signature, count = self.signature, len(pixels)
        if signature.batch is not None and count < batch:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], batch - count, axis=0)])
        if signature.bgr:
            pixels = pixels[:, ::-1]
        if signature.layout == "NHWC":
            pixels = pixels.transpose(0, 2, 3, 1)
        if signature.dtype is np.uint8:
            pixels = np.rint(pixels)
        given = {signature.input: np.ascontiguousarray(pixels, signature.dtype)}
        try:
            found = self._session.run([signature.output], given)
        except self._errors as error:
            raise CheckpointError(reason_of(error)) from error
        return np.asarray(found[0], np.float32).reshape(batch if signature.batch else count, -1)[:count]


def open_onnx(path: Path, stated: Foreign) -> Network:
    """The network of an ONNX file.

    Raises:
        UsageError: A required fact was not stated, or a stated fact is impossible.
        CheckpointError: The file is damaged, or not a classifier of images.
    """
    model, sha256 = read_model(path)
    return network_of_graph(model, path, sha256, stated)


def network_of_graph(model: onnx.ModelProto, path: Path, sha256: str, stated: Foreign) -> Network:
    """The network of a graph that was read from `path`, or made from it."""
    where = path.name
    signature = replace(_signature(model, stated, where), bgr=stated.bgr)
    known = _known(model, signature)
    size = facts_stated.input_of(stated, known, where)
    normalization = facts_stated.normalization_of(stated, known, size.channels, where)
    data = model.SerializeToString()
    noise = _noise(size)
    try:
        run = Runner(data, signature)
        answers = run(noise)
    except CheckpointError as error:
        raise CheckpointError(
            f"{where}: it does not accept images of {size.height} x {size.width} ({error.message})",
            "give another --size",
        ) from error
    if answers.shape[1] < 2:
        raise CheckpointError(f"{where}: it returns one number for each image", "export a network with two classes")
    kind, activation = kind_of_answers(answers, stated.activation, where, last_operator(model.graph, signature.output))
    core = _proved_core(
        model, run, size, noise, where, ends_in_softmax=(kind, activation) == ("probabilities", "softmax")
    )
    facts = Facts(
        name=name_of(path.stem, None),
        model=path.name,
        parameters=sum(int(np.prod(tensor.dims)) for tensor in core.model.graph.initializer),
        classes=facts_stated.classes_of(stated, known, answers.shape[1], where),
        input=size,
        batch=core.batch,
        normalization=normalization,
        answers="logits" if core.taken_off else kind,
        activation=activation,
        thresholds=facts_stated.thresholds_of(stated, activation, answers.shape[1]),
        dataset=data_of(f"ONNX file {path.name}, made elsewhere by {model.producer_name or 'an unnamed tool'}"),
        sha256=sha256,
    )
    network = (_BehindSoftmax if core.taken_off else OnnxNetwork)(data, core.model, signature, facts)
    if core.batch is not None:
        network.remarks = (
            f"{where} gives its own answers in batches of {core.batch} only: its batch stays fixed, and is filled up",
        )
    return network


class _BehindSoftmax(OnnxNetwork):
    """A file that ends in a softmax: it returns probabilities, while its core ends before the softmax."""

    def reference(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._run(normalized(images, self.facts))


def _signature(model: onnx.ModelProto, stated: Foreign, where: str) -> Signature:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    shapes = {value.name: _shape(value) for value in inputs}
    if len(inputs) != 1:
        names = ", ".join(f"{name} {_words(shape)}" for name, shape in shapes.items()) or "none"
        raise CheckpointError(
            f"{where}: it has {counted(len(inputs), 'input')} ({names}), expected one, of images",
            "export a network that takes images alone",
        )
    (value,) = inputs
    shape, kind = shapes[value.name], value.type.tensor_type.elem_type
    if len(shape) != 4 or kind not in _TYPES:
        raise CheckpointError(
            f"{where}: its input {value.name} is {TensorProto.DataType.Name(kind).lower()} {_words(shape)}, expected "
            "images: float32, float16 or uint8 [batch, channels, height, width] or [batch, height, width, channels]",
            "export a network that classifies images",
        )
    layout, channels = ("NCHW", shape[1]) if shape[1] in (1, 3) else ("NHWC", shape[3])
    if channels not in (1, 3):
        raise CheckpointError(
            f"{where}: its input {_words(shape)} has neither 1 nor 3 channels, as second or last dimension",
            "export a network that takes RGB or gray images",
        )
    size = (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])
    fixed = (int(size[0]), int(size[1])) if all(isinstance(side, int) for side in size) else None
    batch = shape[0] if isinstance(shape[0], int) else None
    output = _output(model, stated, where)
    return Signature(value.name, output, layout, _TYPES[kind], fixed, int(channels), batch)


def _output(model: onnx.ModelProto, stated: Foreign, where: str) -> str:
    outputs = {value.name: _shape(value) for value in model.graph.output}
    if stated.output is not None and stated.output not in outputs:
        raise UsageError.unknown("output", stated.output, outputs)
    if stated.output is None and len(outputs) > 1:
        names = ", ".join(f"{name} {_words(shape)}" for name, shape in outputs.items())
        raise UsageError(f"{where}: it has {len(outputs)} outputs ({names})", "choose one with --output")
    name = stated.output or next(iter(outputs))
    shape = outputs[name]
    if len(shape) != 2 and not (len(shape) == 4 and shape[2:] == [1, 1]):
        raise CheckpointError(
            f"{where}: its output {name} is {_words(shape)}, expected [batch, classes]; a detector returns boxes",
            "export a network that classifies images",
        )
    return name


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.dim_value > 0 else (dim.dim_param or "?") for dim in dims]


def _words(shape: list[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _known(model: onnx.ModelProto, signature: Signature) -> Known:
    """Facts in the file: its size, and labels that tools write into its metadata."""
    from convexport.export.sources.onnx_labels import labels_in

    pixels = np.uint8 is signature.dtype
    return Known(
        classes=labels_in({item.key: item.value for item in model.metadata_props}),
        size=signature.size,
        channels=1 if signature.channels == 1 else 3,
        fixed=True,
        # A graph with uint8 input normalizes the pixels itself: it gets them from 0 to 255, unchanged.
        mean=(0.0,) * signature.channels if pixels else None,
        std=(1 / 255,) * signature.channels if pixels else None,
    )


def _noise(size: Input) -> NDArray[np.float32]:
    shape = (max(_PROOF), size.channels, size.height, size.width)
    return np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)


@dataclass(frozen=True)
class _Core:
    """A core that was proved: its graph, the size of its batch if it is fixed, and whether a softmax was taken off."""

    model: onnx.ModelProto
    batch: int | None
    taken_off: bool


def _proved_core(
    model: onnx.ModelProto, run: Runner, size: Input, pixels: NDArray[np.float32], where: str, *, ends_in_softmax: bool
) -> _Core:
    """The core with a dynamic batch, or else with the file's own. Raises `CheckpointError` if neither answers alike."""
    fixed, expected = run.signature.batch, run(pixels)
    for batch in (None, fixed):
        core = _core_of(model, run.signature, size, expected.shape[1], batch)
        taken_off = ends_in_softmax and _takes_softmax_off(core)
        try:
            _prove(core, run, pixels, expected, batch=batch, taken_off=taken_off, where=where)
        except CheckpointError:
            if batch == fixed:
                raise
        else:
            break
    return _Core(core, batch, taken_off)


def _core_of(
    model: onnx.ModelProto, signature: Signature, size: Input, classes: int, batch: int | None
) -> onnx.ModelProto:
    """float32 [batch, C, H, W] -> [batch, K], whatever the form of the file's input and output."""
    import onnxscript.optimizer

    core = onnx.ModelProto()
    core.CopyFrom(model)
    graph = core.graph
    constants = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.output if value.name == signature.output]
    own = [value for value in graph.input if value.name not in constants]
    for field, values in (("output", kept), ("input", own)):
        copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
    if signature.dtype is np.float16:
        widen(core)
    if batch is None:
        make_batch_dynamic(core)
    _adapt(graph, signature, size, [batch or "batch", classes])
    core = onnxscript.optimizer.optimize(core)
    return onnx.shape_inference.infer_shapes(core, data_prop=True)


def _adapt(graph: onnx.GraphProto, signature: Signature, size: Input, answer: list[int | str]) -> None:
    """Nodes before and after a graph that convert its input and output."""
    front: list[onnx.NodeProto] = []
    name = "core.pixels"

    def add(kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"core.front.{len(front)}"
        front.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    if signature.bgr:
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "core.bgr"))
        name = add("Gather", [name, "core.bgr"], axis=1)
    if signature.layout == "NHWC":
        name = add("Transpose", [name], perm=[0, 2, 3, 1])
    if signature.dtype is np.uint8:
        name = add("Cast", [add("Round", [name])], to=TensorProto.UINT8)
    if front:
        rename_values(graph, {signature.input: front[-1].output[0]})
    else:
        rename_values(graph, {signature.input: name})
    rename_values(graph, {signature.output: "core.given"})
    nodes = list(graph.node)
    graph.ClearField("node")
    graph.node.extend(
        [*front, *nodes, helper.make_node("Flatten", ["core.given"], ["core.answer"], name="core.answer")]
    )
    planes = [answer[0], size.channels, size.height, size.width]
    graph.input[0].CopyFrom(helper.make_tensor_value_info("core.pixels", TensorProto.FLOAT, planes))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("core.answer", TensorProto.FLOAT, answer))


def _takes_softmax_off(core: onnx.ModelProto) -> bool:
    """Removes a softmax at the end of a graph: the shell has its own, in float32."""
    graph = core.graph
    made_by = {name: node for node in graph.node for name in node.output}
    last = graph.output[0].name
    while last in made_by and made_by[last].op_type in {"Flatten", "Identity", "Reshape"}:
        last = made_by[last].input[0]
    softmax = made_by.get(last)
    if softmax is None or softmax.op_type != "Softmax":
        return False
    source = softmax.input[0]
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == last:
                node.input[place] = source
    if graph.output[0].name == last:
        node = helper.make_node("Identity", [source], [last], name="core.logits")
        graph.node.append(node)
    graph.node.remove(softmax)
    return True


def _prove(
    core: onnx.ModelProto,
    run: Runner,
    pixels: NDArray[np.float32],
    expected: NDArray[np.float32],
    *,
    batch: int | None,
    taken_off: bool,
    where: str,
) -> None:
    """Checks that core and file give the same answers in batches of 1, 2, 3 and 7, or in batches filled up to `batch`.

    Raises:
        CheckpointError: They do not.
    """
    form = Signature(core.graph.input[0].name, core.graph.output[0].name, "NCHW", np.float32, None, 3, batch)
    try:
        ours = Runner(core.SerializeToString(), form)
        allowed = _ALLOWED_HALF if run.signature.dtype is np.float16 else _ALLOWED
        for count in _PROOF:
            found = ours(pixels[:count])
            found = evaluate.softmax(found, 1.0) if taken_off else found
            scale = max(float(np.abs(expected).max()), 1.0)
            if found.shape != expected[:count].shape or np.abs(found - expected[:count]).max() > allowed * scale:
                raise CheckpointError(f"a batch of {count} gets other answers than from the file")
    except CheckpointError as error:
        raise CheckpointError(
            f"{where}: it does not accept other batch sizes ({error.message})", "export it again with a dynamic batch"
        ) from error
