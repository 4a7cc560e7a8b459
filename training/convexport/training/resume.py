"""The state of an unfinished run: one safetensors file, complete at every instant, never unpickled.

It holds tensors by name (`network.*`, `average.*`, `best.*`, `optimizer.*`) and a JSON header with
the place in the run. It disappears when training ends.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import save as to_bytes
from torch import Tensor

from convexport.runtime.errors import CheckpointError, UsageError, first_line
from convexport.runtime.formats.growth import Format
from convexport.training import checkpoint
from convexport.training.evaluate import EpochRecord

FORMAT = "2.0"
KEY = "convexport-state"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The position of a run. `run` describes the run completely: only the same run is continued.

    `sums` are the epoch's loss sum, right answers and images so far; `seconds` counts all its parts.
    """

    format: str
    run: dict[str, Any]
    epoch: int
    step: int
    sums: tuple[float, float, float]
    seconds: float
    epoch_seconds: float
    best_epoch: int
    best_accuracy: float
    history: tuple[EpochRecord, ...]


_FORMAT = Format("state of a run", FORMAT, Place, CheckpointError, "delete it and train again")


def save(path: Path, place: Place, tensors: dict[str, Tensor]) -> None:
    """Writes the state whole or not at all: after a kill at any instant, this or the previous one is on the disk."""
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    checkpoint.write(path, to_bytes(plain, metadata={KEY: msgspec.json.encode(place).decode()}))


def load(path: Path, run: dict[str, Any], note: Callable[[str], None]) -> tuple[Place, dict[str, Tensor]]:
    """Reads the state of `run`. Raises `CheckpointError` (missing, damaged) and `UsageError` (of another run).

    `note` receives a remark if keys of a newer version are ignored.
    """
    if not path.is_file():
        raise CheckpointError(f"no state to resume at {path}", "start the training without --resume")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"state {path} cannot be read ({first_line(error)})") from error
    metadata, tensors = checkpoint.tensors(data, f"state {path}", _FORMAT.again)
    place, remarks = _FORMAT.decode(metadata.get(KEY, "").encode(), f"state {path}")
    for remark in remarks:
        note(remark)
    wanted, found = _flat(msgspec.json.decode(msgspec.json.encode(run))), _flat(place.run)
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise UsageError(
                f"state {path} belongs to another run: `{key}` was {found.get(key)!r}, asked for {wanted.get(key)!r}",
                "give the same options, or delete it and train again",
            )
    return place, tensors


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"recipe": {"epochs": 5}} -> {"recipe.epochs": 5}: so that a message can name only the option that differs."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}
