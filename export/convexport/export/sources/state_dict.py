"""A file of weights -> a state dict, also inside wrappers. No code in the file is run."""

from __future__ import annotations

import argparse
import hashlib
import io
import pathlib
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convexport.runtime.errors import CheckpointError, UsageError, first_line
from convexport.training.checkpoint import KEY, tensors

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "ema")
AVERAGES = ("state_dict_ema", "model_ema", "params_ema", "ema_state_dict", "ema_model")
_LEFT_BEHIND = ("n_averaged", "total_ops", "total_params")
# Far more than in any real file that wraps a state dict.
_DEEPEST = 6
_MOST_BYTES = 64 << 30
_LONGEST_HEADER = 100 << 20
_MALFORMED = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, AssertionError, TypeError, AttributeError),
    *(struct.error, zipfile.BadZipFile),
)
_numpy_scalar: Any = np.float64(0).__reduce__()[0]
_numpy_array: Any = np.zeros(1).__reduce__()[0]
_SAFE: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    _numpy_scalar,
    _numpy_array,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")),
]


@dataclass(frozen=True)
class StateDict:
    """Weights from a file.

    Attributes:
        path: The file.
        state: Tensors by name, float32 on the CPU, without the file's wrappers, with the prefixes of names.
        sha256: The file's hash.
        remarks: What was dropped or computed, one line each.
    """

    path: Path
    state: dict[str, Tensor]
    sha256: str
    remarks: tuple[str, ...] = ()


def read_state(path: Path, wanted: str | None = None) -> StateDict:
    """Reads `.safetensors`, or what `torch.save` wrote.

    Args:
        path: The file.
        wanted: The key of the state dict, if the file contains several.

    Raises:
        CheckpointError: It is missing, damaged, or contains no state dict.
        UsageError: It contains several, or none with the wanted key.
    """
    data = _read(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if path.suffix == ".safetensors":
        metadata, state = tensors(data, f"weights {path}")
        if KEY in metadata:
            raise UsageError(
                f"checkpoint {path} is convexport's own and contains its classes, mean and std", "leave them out"
            )
        found: dict[str, Any] = dict(state)
    else:
        found = _chosen(dict(_state_dicts(_unpickled(data, path))), wanted, path)
    state, remarks = _cleaned(found, path)
    return StateDict(path, state, sha256, remarks)


def is_own(path: Path) -> bool:
    """Whether a file is a checkpoint of convexport's own; also if it is missing, so that the error says checkpoint."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return path.suffix == ".safetensors" and f'"{KEY}"'.encode() in file.read(min(length, _LONGEST_HEADER))
    except OSError:
        return True


def load_into(module: nn.Module, weights: StateDict, where: str) -> None:
    """Loads weights into a module; prefixes of names that wrappers added are removed.

    Raises:
        CheckpointError: They do not fit. The message names the first tensor that does not.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    tries = list(without_prefixes(weights.state))
    state = max(tries, key=lambda one: len(one.keys() & expected.keys()))
    found = {key: tuple(value.shape) for key, value in state.items()}
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    wrong = [
        key
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key) and not (key in optional and key not in found)
    ]
    if wrong:
        key, more = wrong[0], f" (and {len(wrong) - 1:,} more do not fit)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"weights {weights.path}: tensor {key!r} is {_shape(found.get(key))}, {where} expects "
            f"{_shape(expected.get(key))}{more}",
            "name the network that they belong to",
        )
    given: dict[str, Any] = OrderedDict(state)
    # Versions of a module's parts, which a few ask for (MNASNet): where shapes fit, they are the module's own.
    given._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    module.load_state_dict(given, strict=False)
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"weights {weights.path}: tensor {key!r} contains NaN or infinity",
                "train again, or use an earlier checkpoint",
            )


def without_prefixes(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The unchanged state dict, then without each prefix that all its names share."""
    current = dict(state)
    yield current
    while True:
        prefix = next((one for one in PREFIXES if current and all(key.startswith(one) for key in current)), None)
        if prefix is None:
            return
        current = {key.removeprefix(prefix): value for key, value in current.items()}
        yield current


def without_needless_biases(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """A convolution's bias before a batch norm (kuangliu/pytorch-cifar has one) moved into the batch norm's mean.

    The normalized value is the same: (x + bias) - mean = x - (mean - bias).
    """
    found = dict(state)
    for key in [key for key in found if key.endswith(".bias") and key not in expected]:
        prefix, _, index = key.removesuffix(".bias").rpartition(".")
        mean = f"{prefix}.{int(index) + 1}.running_mean" if index.isdecimal() else ""
        if mean in found and f"{prefix}.{index}.weight" in expected and found[mean].shape == found[key].shape:
            found[mean] = found[mean] - found.pop(key)
    return found


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise CheckpointError(f"weights {path} are a folder, expected a file", "name the file in it") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"weights {path} do not exist", "check the path") from error
    except OSError as error:
        raise CheckpointError(f"weights {path} cannot be read ({first_line(error)})", "check the path") from error
    what = not_weights(data)
    if what is not None:
        raise CheckpointError(f"weights {path}: {what[0]}", what[1])
    return data


def not_weights(data: bytes) -> tuple[str, str] | None:
    """What a file without weights is, and what to do; None if it may contain weights."""
    start = data[:64].lstrip().lower()
    if not data:
        return "the file is empty", "download or copy it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, and the file itself was not downloaded", "run git lfs pull"
    if start.startswith((b"<!doctype", b"<html")):
        return "it is an HTML page, such as a login page in place of the download", "download the file itself"
    if data[:4] == b"PK\3\4":
        return _not_weights_in_zip(data)
    if data[:1] == b"\x08" and b"onnx" in data[:4096].lower():
        return "it is an ONNX file", "use --model, as in --model net.onnx"
    return None


def _not_weights_in_zip(data: bytes) -> tuple[str, str] | None:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return None
    ends = {name.partition("/")[2] for name in names}
    if "constants.pkl" in ends and any(name.startswith("code/") for name in ends):
        return (
            "it is a TorchScript program, which is code; convexport does not run it",
            "save torch.jit.load(FILE).state_dict() and give its network with --model",
        )
    if any(name.startswith("models/") for name in ends) or "archive_format" in ends:
        return "it is an exported program (.pt2)", "use --model, as in --model net.pt2"
    return None


def _unpickled(data: bytes, path: Path) -> object:
    if not data.startswith((b"PK\3\4", b"\x80")):
        raise CheckpointError(f"weights {path} are neither safetensors nor a file of torch.save", "check the path")
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"weights {path} contain more than tensors, like a pickled module, and are not loaded, because that "
            "could run code",
            "save only network.state_dict(), and name the network with --model",
        ) from error
    except _MALFORMED as error:
        raise CheckpointError(
            f"weights {path} are damaged ({first_line(error)})", "download or copy it again"
        ) from error


def _state_dicts(value: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """The state dicts in a file's content, by their keys. The search stops at a fixed depth."""
    if not isinstance(value, dict) or depth > _DEEPEST:
        return
    if any(isinstance(item, Tensor) and item.dim() for item in value.values()):
        yield place, {str(key): item for key, item in value.items()}
        return
    for key in (*WRAPPERS, *AVERAGES):
        if key in value and value[key] is not value:
            yield from _state_dicts(value[key], f"{place}.{key}".lstrip("."), depth + 1)


def _chosen(found: dict[str, dict[str, Any]], wanted: str | None, path: Path) -> dict[str, Any]:
    if wanted is not None:
        if wanted not in found:
            raise UsageError.unknown("state dict", wanted, [key or "the file itself" for key in found])
        return found[wanted]
    if not found:
        raise CheckpointError(f"weights {path}: it contains no state dict", "save only network.state_dict()")
    if len(found) > 1:
        raise UsageError(
            f"weights {path} contain {len(found)} state dicts: {', '.join(found)}",
            f"choose one, as in --state {next(iter(found))}",
        )
    return next(iter(found.values()))


def _cleaned(found: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors as float32; leftovers of tools are dropped, pruning masks applied. Sizes are checked first."""
    total = sum(item.numel() * 4 for item in found.values() if isinstance(item, Tensor))
    if total > _MOST_BYTES:
        raise CheckpointError(f"weights {path}: tensors of {total:,} bytes, more than the limit of {_MOST_BYTES:,}")
    dropped = [
        key for key, item in found.items() if key.rpartition(".")[2] in _LEFT_BEHIND or not isinstance(item, Tensor)
    ]
    state = {
        key: (item.float() if item.is_floating_point() else item).detach().contiguous()
        for key, item in found.items()
        if key not in dropped
    }
    pruned = [key.removesuffix("_orig") for key in state if key.endswith("_orig") and f"{key[:-5]}_mask" in state]
    for key in pruned:
        state[key] = state.pop(f"{key}_orig") * state.pop(f"{key}_mask")
    remarks = [
        f"weights     {what}: {_some(keys)}" for what, keys in (("left out", dropped), ("pruned", pruned)) if keys
    ]
    return state, tuple(remarks)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
