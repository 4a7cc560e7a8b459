"""A checkpoint: one `.safetensors` file with a complete JSON header. Loading never guesses and never unpickles.

The header travels in the file's metadata under the key `convexport`. docs/format.md describes it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from convexport.runtime import atomic
from convexport.runtime.errors import CheckpointError, StorageError, first_line
from convexport.runtime.formats.growth import Format
from convexport.runtime.manifest import Accuracy, Dataset, Input, Normalization, Part, Sha256
from convexport.training import models, witnesses
from convexport.training.formats import header_1
from convexport.training.witnesses import Witnesses, WitnessRecord

FORMAT = "2.1"
# The last version whose files had no digest.
_WITHOUT_DIGEST = "2.0"
KEY = "convexport"
_PICKLED = {".pth", ".pt"}
# What torch.load raises on malformed files, besides its UnpicklingError.
_MALFORMED = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, AssertionError, TypeError, AttributeError),
    struct.error,
)
_FOREIGN = "if it is a state dict from another project, also give --model, --classes, --mean and --std"

_COPY_AGAIN = "copy it again from its source, or train it again"


class Header(Part, frozen=True, kw_only=True):
    """Everything a reader of a checkpoint needs: architecture, classes, input, normalization, provenance, accuracy.

    `normalization.temperature` is 1 until it was fitted on the validation split. `recipe` is the recipe as it ran.
    Only a saved file has a `digest`: SHA-256 of this header without the digest, and of every tensor.
    """

    format: str
    name: str
    model: str
    arguments: dict[str, Any]
    classes: dict[str, tuple[str, ...]]
    input: Input
    normalization: Normalization
    dataset: Dataset
    recipe: dict[str, Any]
    accuracy: Accuracy
    seed: int | None
    versions: dict[str, str]
    git_commit: str | None
    machine: str | None = None
    training_seconds: float | None = None
    witnesses: WitnessRecord | None = None
    digest: Sha256 | None = None


_FORMAT = Format("checkpoint header", FORMAT, Header, CheckpointError, "train it again", {1: header_1.upgraded})


@dataclass(frozen=True)
class Checkpoint:
    """A header and the network's state dict.

    Attributes:
        header: The description of the network.
        state: Tensors by name, float32 on the CPU.
        sha256: The file's hash; empty before the checkpoint is saved.
        remarks: Remarks from reading the header, such as keys of a newer version that were ignored.
        witnesses: Held-out images with torch's answers, which `header.witnesses` describes; None if there are none.
    """

    header: Header
    state: dict[str, Tensor]
    sha256: str = ""
    remarks: tuple[str, ...] = ()
    witnesses: Witnesses | None = None

    def network(self) -> nn.Sequential:
        """The network with these weights, in evaluation mode. Raises `CheckpointError` if they do not fit it."""
        network = models.build(self.header.model, self.header.arguments)
        expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        found = {key: tuple(value.shape) for key, value in self.state.items()}
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                raise CheckpointError(
                    f"checkpoint {self.header.name}: tensor {key!r} is {_shape(found.get(key))}, {self.header.model} "
                    f"expects {_shape(expected.get(key))}",
                    "train it again, or give the --model that it was made for",
                )
        network.load_state_dict(self.state)
        return network.eval()


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def save(path: Path, checkpoint: Checkpoint, *, half: bool = False) -> str:
    """Writes `checkpoint` to `path`, whole or not at all, and returns its SHA-256. `half` stores weights in float16.

    The same checkpoint always gives the same bytes.
    """
    state = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in checkpoint.state.items()
    }
    if checkpoint.witnesses is not None:
        state |= checkpoint.witnesses.tensors()
    header = msgspec.structs.replace(checkpoint.header, digest=None)
    header = msgspec.structs.replace(header, digest=_digest(_json(header), state))
    data = to_bytes(state, metadata={KEY: _json(header)})
    write(path, data)
    return hashlib.sha256(data).hexdigest()


def _json(header: Header) -> str:
    return msgspec.json.encode(header, order="deterministic").decode()


def _digest(header: str, state: dict[str, Tensor]) -> str:
    """SHA-256 of a header's JSON, in which `digest` is null, and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(header.encode())
    for name, value in sorted(state.items()):
        digest.update(f"\0{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(path: Path, data: bytes) -> None:
    """Writes a file of a run, whole or not at all. Raises `StorageError` if it cannot be written."""
    try:
        atomic.write(path, data)
    except OSError as error:
        raise StorageError.unwritable(str(path), error, "choose another folder") from error


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint; its SHA-256 and its tensors come from one read.

    Raises:
        CheckpointError: It is missing, damaged, not from convexport, or of another format.
    """
    data = _read(path, "train one with convtrain, or check the path")
    if path.suffix in _PICKLED:
        raise CheckpointError(f"checkpoint {path} is not one that convexport wrote", _FOREIGN)
    metadata, state = tensors(data, f"checkpoint {path}", "train it again")
    if KEY not in metadata:
        raise CheckpointError(f"checkpoint {path} has no convexport header", _FOREIGN)
    header, remarks = _FORMAT.decode(metadata[KEY].encode(), f"checkpoint {path}")
    _check_content(header, metadata[KEY], state, path)
    try:
        state, found = witnesses.taken_out(state)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({first_line(error)})", "train it again") from error
    header = msgspec.structs.replace(header, digest=None)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return Checkpoint(header, state, hashlib.sha256(data).hexdigest(), remarks, found)


def _check_content(header: Header, text: str, state: dict[str, Tensor], path: Path) -> None:
    """Raises `CheckpointError` if the header or the tensors are not those that were saved."""
    if header.digest is None:
        if header.format == _WITHOUT_DIGEST:
            return
        raise CheckpointError(f"checkpoint {path} is damaged (its header has no digest)", _COPY_AGAIN)
    undigested = text.replace(f'"digest":"{header.digest}"', '"digest":null', 1)
    if _digest(undigested, state) != header.digest:
        raise CheckpointError(
            f"checkpoint {path} is damaged (its header or a tensor was changed after it was saved)", _COPY_AGAIN
        )


def tensors(data: bytes, where: str, fix: str | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Bytes of a safetensors file -> its metadata and its tensors. Raises `CheckpointError` if it is damaged."""
    try:
        state = from_bytes(data)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: an element type that torch does not have
        raise CheckpointError(f"{where} is damaged ({first_line(error)})", fix) from error
    # The library has checked the header: its length in 8 bytes, then JSON.
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = msgspec.json.decode(data[8 : 8 + length]).get("__metadata__") or {}
    return metadata, state


def _read(path: Path, fix: str) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"checkpoint {path} does not exist", fix) from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({first_line(error)})", fix) from error
