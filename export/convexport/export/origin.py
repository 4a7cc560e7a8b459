"""Results of another origin are never replaced without being told: which checkpoint a bundle was exported from."""

from __future__ import annotations

from pathlib import Path

from convexport.runtime.bundle import open_bundle
from convexport.runtime.errors import BundleError, UsageError
from convexport.runtime.manifest import Provenance


def check_origin(target: Path, wanted: Provenance) -> None:
    """Raises `UsageError` where the bundle at `target` was exported from another checkpoint than `wanted` tells of."""
    if not target.exists():
        return
    try:
        with open_bundle(target) as bundle:
            found = bundle.manifest.provenance
    except BundleError:
        return  # what nobody can read any more is no result
    if _same(found, wanted):
        return
    raise UsageError(
        f"{target} is there and was exported from another checkpoint (SHA-256 {found.checkpoint_sha256[:12]}..., "
        f"this one {wanted.checkpoint_sha256[:12]}...)",
        "name another place with --out, or replace it with --force",
    )


def _same(found: Provenance, wanted: Provenance) -> bool:
    """One file, or two of one run: a run that is repeated leaves the same weights beside another time."""
    if found.checkpoint_sha256 == wanted.checkpoint_sha256:
        return True
    runs = [
        (one.dataset.name, one.dataset.sha256, one.recipe, one.seed, one.versions.get("torch"))
        for one in (found, wanted)
    ]
    return found.dataset.sha256 is not None and runs[0] == runs[1]
