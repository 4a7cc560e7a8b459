"""A checkpoint: one `.safetensors` file whose JSON header says everything. Loading never guesses, never unpickles.

The header travels in the file's metadata under the key `convexport`. Version 1 is described in docs/format.md.
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from convexport.runtime import atomic
from convexport.runtime.errors import CheckpointError, UsageError
from convexport.runtime.manifest import Accuracy, Dataset, Input, Normalisation, Part
from convexport.training import models

FORMAT = 1
KEY = "convexport"
# What torch.load raises on malformed files, besides its UnpicklingError.
_MALFORMED = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, AssertionError, TypeError, AttributeError),
    struct.error,
)
_FOREIGN = "for a state dict made elsewhere give --model, --classes, --mean and --std with it"


class Header(Part, frozen=True, kw_only=True):
    """Everything a reader of a checkpoint needs: architecture, classes, input, normalisation, provenance, accuracy.

    `normalisation.temperature` is 1 until it was fitted on the validation split. `recipe` is the recipe as it ran.
    """

    format: int
    name: str
    model: str
    arguments: dict[str, Any]
    classes: dict[str, tuple[str, ...]]
    input: Input
    normalisation: Normalisation
    dataset: Dataset
    recipe: dict[str, Any]
    accuracy: Accuracy
    seed: int | None
    versions: dict[str, str]
    git_commit: str | None
    machine: str | None = None
    training_seconds: float | None = None


class _Version(msgspec.Struct):
    format: int


@dataclass(frozen=True)
class Checkpoint:
    """A header and the network's state dict (float32 on the CPU). `sha256` is the file's; empty before it was saved."""

    header: Header
    state: dict[str, Tensor]
    sha256: str = ""

    def network(self) -> nn.Sequential:
        """The network with these weights, in evaluation mode. Raises `CheckpointError` where they do not fit it."""
        network = models.build(self.header.model, self.header.arguments)
        expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        found = {key: tuple(value.shape) for key, value in self.state.items()}
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                raise CheckpointError(
                    f"checkpoint {self.header.name}: tensor {key!r} is {_shape(found.get(key))}, {self.header.model} "
                    f"expects {_shape(expected.get(key))}; train again or name the model it was made for"
                )
        network.load_state_dict(self.state)
        return network.eval()


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def save(path: Path, checkpoint: Checkpoint, *, half: bool = False) -> str:
    """Writes `checkpoint` to `path`, whole or not at all, and gives its SHA-256. `half` stores weights in float16.

    The same checkpoint always gives the same bytes.
    """
    state = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in checkpoint.state.items()
    }
    header = msgspec.json.encode(checkpoint.header, order="deterministic").decode()
    data = to_bytes(state, metadata={KEY: header})
    write(path, data)
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes) -> None:
    """A file of a run, whole or not at all. Raises `CheckpointError` where it cannot be written."""
    try:
        atomic.write(path, data)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); make room, or name another folder with --out"
        ) from error


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises `CheckpointError`: missing, damaged, foreign, of another format."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not there; train one with convtrain, or check the path")
    if path.suffix in {".pth", ".pt"}:
        raise CheckpointError(f"checkpoint {path} is none of convexport's; {_FOREIGN}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); train it again") from error
    if KEY not in metadata:
        raise CheckpointError(f"checkpoint {path} has no convexport header; {_FOREIGN}")
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return Checkpoint(_header(metadata[KEY], path), state, hashlib.sha256(path.read_bytes()).hexdigest())


def _header(text: str, path: Path) -> Header:
    try:
        version = msgspec.json.decode(text, type=_Version).format
        if version != FORMAT:
            action = "update convexport" if version > FORMAT else "train it again"
            raise CheckpointError(f"checkpoint {path}: format {version}, this convexport reads {FORMAT}; {action}")
        return msgspec.json.decode(text, type=Header)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: header: {error}; train it again") from error


def load_foreign(path: Path) -> tuple[dict[str, Tensor], str]:
    """A state dict made elsewhere (`.pth`, `.pt`, `.safetensors`) and its file's SHA-256, both from one read.

    It is loaded with `weights_only=True`: no code runs.

    Wrappers `state_dict`, `model` and `net` and the prefix `module.` of DataParallel are taken off.
    Raises `CheckpointError`; `UsageError` for a checkpoint of convexport's own, whose header would be lost.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not there; check the path")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error.strerror})", "check the path") from error
    state = _foreign_tensors(data, path) if path.suffix == ".safetensors" else _state_of(_unpickled(data, path), path)
    return state, hashlib.sha256(data).hexdigest()


def _foreign_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        state = from_bytes(data)
        # A file of safetensors begins with the length of its header, eight bytes, and the header in JSON.
        header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")], type=dict[str, Any])
    except (SafetensorError, msgspec.DecodeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error})") from error
    if KEY in header.get("__metadata__", {}):
        raise UsageError(
            f"checkpoint {path} is convexport's own and says these itself; leave out --classes, --mean and --std"
        )
    return state


def _unpickled(data: bytes, path: Path) -> object:
    import pickle

    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {path} holds more than tensors and is not loaded, since that could run code ({reason}); "
            "save network.state_dict() alone"
        ) from error
    except _MALFORMED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"checkpoint {path} is no readable state dict ({reason})") from error


def _state_of(value: object, path: Path) -> dict[str, Tensor]:
    while isinstance(value, dict):
        inner = next((value[key] for key in ("state_dict", "model", "net") if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        value = inner
    if not isinstance(value, dict) or not all(isinstance(item, Tensor) for item in value.values()):
        raise CheckpointError(f"checkpoint {path} is a {type(value).__name__}, expected a state dict of tensors")
    return {str(key).removeprefix("module."): item for key, item in value.items()}
