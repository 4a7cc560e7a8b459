"""Checkpoint -> ONNX bytes: the one module that traces with torch.

The graph takes uint8 images `images` [batch, H, W, C] and gives `probabilities` float32 [batch, K]; scaling, mean,
standard deviation, temperature and softmax are inside. The same checkpoint always gives the same bytes: no date, no
local path, no stack trace.
"""

from __future__ import annotations

import warnings
from typing import Literal

import onnx
import torch

from convexport.export.passes.base import apply
from convexport.export.passes.describe import INPUT, OUTPUT, Describe
from convexport.export.passes.fold_batch_norm import fold_batch_norm
from convexport.export.passes.half import HalfShell
from convexport.export.passes.shell import Shell
from convexport.export.passes.strip import strip
from convexport.training.checkpoint import Checkpoint, Header

# Low enough for ONNX Runtime 1.20 and TensorRT 10.
OPSET = 20

FloatPrecision = Literal["fp32", "fp16"]
SHELLS: dict[FloatPrecision, type[Shell]] = {"fp32": Shell, "fp16": HalfShell}


def to_onnx(checkpoint: Checkpoint, precision: FloatPrecision = "fp32") -> bytes:
    """Traces the checkpoint's network and gives the bytes of one ONNX file.

    Args:
        checkpoint: The network and its header.
        precision: With `fp16` the network runs in half inside a float32 shell.

    Raises:
        CheckpointError: The weights do not fit the network.
    """
    header = checkpoint.header
    shell = SHELLS[precision](fold_batch_norm(checkpoint.network()), header)
    return apply((strip, Describe(header, precision)), _trace(shell, header))


def _trace(shell: Shell, header: Header) -> onnx.ModelProto:
    size = header.input
    # Two images: a batch of one would be taken for a constant.
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
