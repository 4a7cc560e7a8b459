"""Network -> ONNX bytes: the one module that traces with torch.

The graph takes uint8 pictures `images` [batch, H, W, C] and gives `probabilities` float32 [batch, K]; scaling, mean,
standard deviation, temperature and softmax are inside. Batch norm is folded into the convolution before it, in
float32, before any cast. The same checkpoint always gives the same bytes: no date, no local path, no stack trace.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Literal

import msgspec
import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convexport.training.checkpoint import Checkpoint, Header

# Low enough for ONNX Runtime 1.20 and TensorRT 10.
OPSET = 20
IR_VERSION = 10
INPUT = "images"
OUTPUT = "probabilities"

FloatPrecision = Literal["fp32", "fp16"]
DTYPES: dict[FloatPrecision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


def to_onnx(checkpoint: Checkpoint, precision: FloatPrecision = "fp32") -> bytes:
    """The checkpoint's network as the bytes of one ONNX file.

    With `fp16` the network runs in half inside a float32 shell: normalization in front, softmax behind. Raises
    `CheckpointError` where the weights do not fit the network.
    """
    header = checkpoint.header
    network = fold_batch_norm(checkpoint.network())
    model = _trace(_Shell(network, header, DTYPES[precision]), header)
    _strip(model)
    _describe(model, header, precision)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def fold_batch_norm(network: nn.Sequential) -> nn.Sequential:
    """A copy in evaluation mode whose batch norms are folded, in float32, into the convolution before each.

    `nn.Identity` takes a batch norm's place, so that every other module keeps its name.
    """
    folded = copy.deepcopy(network).eval()
    _fold(folded)
    return folded


def _fold(parent: nn.Module) -> None:
    previous: tuple[str, nn.Module] | None = None
    for name, module in list(parent.named_children()):
        if isinstance(module, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
            setattr(parent, previous[0], fuse_conv_bn_eval(previous[1], module))
            setattr(parent, name, nn.Identity())
        _fold(module)
        previous = (name, module)


class _Shell(nn.Module):
    """uint8 [N, H, W, C] -> probabilities float32 [N, K] around a network that runs in `dtype`."""

    offset: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, header: Header, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype
        self.temperature = header.normalization.temperature
        mean = torch.tensor(header.normalization.mean, dtype=torch.float64)
        std = torch.tensor(header.normalization.std, dtype=torch.float64)
        # Two nodes in place of three: (pixel - 255 mean) / (255 std).
        self.register_buffer("offset", (255 * mean).to(torch.float32).view(1, -1, 1, 1))
        self.register_buffer("scale", (1 / (255 * std)).to(torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.to(torch.float32).permute(0, 3, 1, 2)  # TensorRT transposes no uint8
        logits = self.network(((pixels - self.offset) * self.scale).to(self.dtype)).to(torch.float32)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return torch.softmax(logits, dim=1)


def _trace(shell: _Shell, header: Header) -> onnx.ModelProto:
    size = header.input
    # Two pictures: a batch of one would be taken for a constant.
    example = torch.zeros(2, size.height, size.width, size.channels, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        # torch's exporter calls parts of torch that torch itself has deprecated.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|copyreg")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program = torch.onnx.export(
            shell.eval(),
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    model = onnx.ModelProto()
    model.CopyFrom(program.model_proto)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Takes away what names the exporting machine or run: stack traces, doc strings, the exporter's own notes."""
    graph = model.graph
    model.doc_string = ""
    graph.doc_string = ""
    parts: Iterable[Any] = (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info)
    for part in parts:
        part.doc_string = ""
        part.ClearField("metadata_props")
    graph.ClearField("metadata_props")
    model.ClearField("metadata_props")


def _describe(model: onnx.ModelProto, header: Header, precision: FloatPrecision) -> None:
    """What a viewer such as Netron shows: where the graph comes from, its labels, what it takes and gives."""
    model.producer_name = "convexport"
    model.producer_version = version("convexport")
    model.ir_version = IR_VERSION
    model.graph.name = header.name
    size = header.input
    properties = {
        "convexport.input": f"{INPUT}: uint8 [batch, {size.height}, {size.width}, {size.channels}], pixels 0 to 255, "
        + ("RGB" if size.channels == 3 else "grey"),
        "convexport.output": f"{OUTPUT}: float32 [batch, {len(header.classes['en'])}], rows sum to 1",
        "convexport.framing": size.framing,
        "convexport.ink": size.ink,
        "convexport.model": header.model,
        "convexport.precision": precision,
        **{f"convexport.labels.{lang}": _json(labels) for lang, labels in header.classes.items()},
    }
    set_properties(model, properties)


def set_properties(model: onnx.ModelProto, properties: dict[str, str]) -> None:
    """Writes `metadata_props`, sorted by key, in place of those there."""
    model.ClearField("metadata_props")
    for key in sorted(properties):
        model.metadata_props.add(key=key, value=properties[key])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
