"""Origin `FILE.pt2`: a program of torch.export. torch converts it to a graph, treated like an ONNX file."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import onnx
import torch

from convexport.export.sources.network import Network
from convexport.export.sources.onnx_file import network_of_graph
from convexport.export.sources.stated import Foreign
from convexport.export.sources.torch_module import OPSET
from convexport.runtime.errors import CheckpointError, first_line


def open_exported_program(path: Path, stated: Foreign) -> Network:
    """The network of an exported program; its batch may be static. Raises the errors of `open_onnx`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)})", "check the path") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.load(io.BytesIO(data))
        except (RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
            raise CheckpointError(
                f"{path} is not an exported program ({first_line(error)})", "make it with torch.export.save"
            ) from error
        made = torch.onnx.export(program, (), dynamo=True, external_data=False, opset_version=OPSET, verbose=False)
    assert made is not None
    model = onnx.ModelProto()
    model.CopyFrom(made.model_proto)
    model.producer_name = "torch.export"
    return network_of_graph(model, path, hashlib.sha256(data).hexdigest(), stated)
