"""Reads an ONNX file that another tool wrote, and says in one line what cannot be exported and why."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model

from convexport.export.sources.state_dict import not_weights
from convexport.runtime.errors import CheckpointError, first_line

OLDEST_OPSET, UPGRADED_OPSET = 13, 17  # before 13, Softmax has other semantics, and weights have no scale per channel
_LARGEST_FILE = 2 << 30
_QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulNBits"),
)
# The operators that ONNX Runtime has.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


def read_model(path: Path) -> tuple[onnx.ModelProto, str]:
    """An ONNX file with its weights, in an opset that the passes support -> the model and the file's SHA-256.

    Raises:
        CheckpointError: The file is damaged, incomplete, or not of a kind that can be exported.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _LARGEST_FILE else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)})", "check the path") from error
    if size > _LARGEST_FILE:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and an ONNX file {_LARGEST_FILE:,} at most", "use one with external data"
        )
    what = not_weights(data)
    if what is not None and what[0] != "it is an ONNX file":
        raise CheckpointError(f"{path}: {what[0]}", what[1])
    try:
        model = onnx.load_from_string(data)
        _check_external(model, path)
        load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except DecodeError as error:
        raise CheckpointError(f"{path} is not an ONNX file, or is damaged", "download or copy it again") from error
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a valid ONNX file ({first_line(error)})", "export it again") from error
    if not model.graph.node:
        raise CheckpointError(f"{path} is not an ONNX file, or is empty", "export it again")
    _check_operators(model, path)
    return _recent(model, path), hashlib.sha256(data).hexdigest()


def _recent(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with an opset that the passes support."""
    opset = next((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), 0)
    if opset >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, UPGRADED_OPSET)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: opset {opset} cannot be upgraded to {UPGRADED_OPSET} ({first_line(error)})",
            f"export it again with opset {OLDEST_OPSET} or later",
        ) from error


def _check_external(model: onnx.ModelProto, path: Path) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = ExternalDataInfo(tensor).location
            if not (path.parent / place).is_file():
                raise CheckpointError(
                    f"{path}: its weights are in {place}, which is not beside it", "copy that file, too"
                )


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    """Raises `CheckpointError` for what would fail later, with another cause named."""
    own = {function.domain for function in model.functions}
    for node in model.graph.node:
        if node.op_type in _QUANTIZED:
            raise CheckpointError(
                f"{path}: it is quantized already (operator {node.op_type})",
                "export the float32 network, and quantize it here with --int8",
            )
        if node.domain not in _DOMAINS and node.domain not in own:
            raise CheckpointError(
                f"{path}: it uses the operator {node.op_type} of {node.domain}, which ONNX Runtime does not have",
                "export it with ONNX's own operators",
            )
        if _trains(node, model.graph):
            raise CheckpointError(
                f"{path}: it was exported in training mode ({node.op_type} {node.name or node.output[0]})",
                "export it again after model.eval()",
            )


def _trains(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    if node.op_type == "BatchNormalization":
        return any(one.name == "training_mode" and helper.get_attribute_value(one) for one in node.attribute)
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    return bool(_constants(graph).get(node.input[2], False))


def _constants(graph: onnx.GraphProto) -> dict[str, bool]:
    """The constants of a graph that are one value, as truths."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: bool(numpy_helper.to_array(one)) for name, one in tensors.items() if not one.dims}
