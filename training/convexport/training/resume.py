"""The state of an unfinished run: one safetensors file beside the checkpoint, whole at every instant, never unpickled.

It holds tensors by name (`network.*`, `average.*`, `best.*`, `optimizer.*`) and a JSON header with
the place in the run. It disappears when training ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from convexport.runtime.errors import CheckpointError, UsageError
from convexport.training.checkpoint import write
from convexport.training.evaluate import EpochRecord

FORMAT = 1
KEY = "convexport-state"


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a run stands. `run` describes it in full: only the same run is continued.

    `sums` are the epoch's loss sum, right answers and images so far; `seconds` counts all sittings.
    """

    format: int
    run: dict[str, Any]
    epoch: int
    step: int
    sums: tuple[float, float, float]
    seconds: float
    epoch_seconds: float
    best_epoch: int
    best_accuracy: float
    history: tuple[EpochRecord, ...]


def save(path: Path, place: Place, tensors: dict[str, Tensor]) -> None:
    """Writes the state whole or not at all: a kill at any instant leaves this state or the one before."""
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write(path, to_bytes(plain, metadata={KEY: msgspec.json.encode(place).decode()}))


def load(path: Path, run: dict[str, Any]) -> tuple[Place, dict[str, Tensor]]:
    """Reads the state of `run`. Raises `CheckpointError` (missing, damaged) and `UsageError` (another run's)."""
    if not path.is_file():
        raise CheckpointError(f"no state to resume at {path}; start the training without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY, "")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        place = msgspec.json.decode(text, type=Place)
    except (SafetensorError, OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"state {path} is damaged ({error}); delete it and train anew") from error
    if place.format != FORMAT:
        raise CheckpointError(
            f"state {path}: format {place.format}, this convexport reads {FORMAT}; delete it and train anew"
        )
    wanted, found = _flat(msgspec.json.decode(msgspec.json.encode(run))), _flat(place.run)
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise UsageError(
                f"state {path} belongs to another run: `{key}` was {found.get(key)!r}, asked for "
                f"{wanted.get(key)!r}; give the same options, or delete it and train anew"
            )
    return place, tensors


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"recipe": {"epochs": 5}} -> {"recipe.epochs": 5}: the one option that differs is named, not all beside it."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}
