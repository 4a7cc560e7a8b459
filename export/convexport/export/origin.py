"""A bundle that was exported from another checkpoint is replaced only if the user asks for it."""

from __future__ import annotations

from pathlib import Path

from convexport.runtime.bundle import open_bundle
from convexport.runtime.errors import BundleError, UsageError
from convexport.runtime.manifest import Provenance


def check_origin(target: Path, wanted: Provenance) -> None:
    """Raises `UsageError` if the bundle at `target` was exported from another checkpoint than the one in `wanted`."""
    if not target.exists():
        return
    try:
        with open_bundle(target) as bundle:
            found = bundle.manifest.provenance
    except BundleError:
        return  # an unreadable bundle is not worth keeping
    if _same(found, wanted):
        return
    raise UsageError(
        f"{target} exists and was exported from another checkpoint (SHA-256 {found.checkpoint_sha256[:12]}..., "
        f"this one {wanted.checkpoint_sha256[:12]}...)",
        "choose another folder with --out, or replace it with --force",
    )


def _same(found: Provenance, wanted: Provenance) -> bool:
    """The same file, or two files of the same run: a repeated run writes the same weights and another time."""
    if found.checkpoint_sha256 == wanted.checkpoint_sha256:
        return True
    runs = [
        (one.dataset.name, one.dataset.sha256, one.recipe, one.seed, one.versions.get("torch"))
        for one in (found, wanted)
    ]
    return found.dataset.sha256 is not None and runs[0] == runs[1]
