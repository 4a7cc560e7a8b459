"""The core of an ONNX file: float32 [batch, C, H, W] -> [batch, K], proved against the unchanged file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convexport.export.passes.dynamic_batch import make_batch_dynamic
from convexport.export.passes.names import rename_values
from convexport.export.passes.storage import widen
from convexport.export.sources.onnx_signature import Signature
from convexport.runtime.backends.onnxruntime import reason_of
from convexport.runtime.devices import import_library
from convexport.runtime.errors import CheckpointError
from convexport.runtime.manifest import Input
from convexport.training import evaluate

_PROOF = (1, 2, 3, 7)
_ALLOWED, _ALLOWED_HALF = 1e-4, 1e-2
_ERRORS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")


@dataclass(frozen=True)
class Core:
    """A core that was proved: its graph, the size of its batch if it is fixed, and whether a softmax was taken off."""

    model: onnx.ModelProto
    batch: int | None
    taken_off: bool


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


def trial_images(size: Input) -> NDArray[np.float32]:
    """Random images [7, C, H, W] of zeros and ones, which a core is proved with."""
    shape = (max(_PROOF), size.channels, size.height, size.width)
    return np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)


def proved_core(
    model: onnx.ModelProto, run: Runner, size: Input, pixels: NDArray[np.float32], where: str, *, ends_in_softmax: bool
) -> Core:
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
    return Core(core, batch, taken_off)


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
