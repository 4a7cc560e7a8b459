"""Whether an answer is sure: the thresholds in `Verification.promises`, which the export measured."""

from __future__ import annotations

from convexport.runtime.backends.base import Backend
from convexport.runtime.errors import BundleError, UsageError
from convexport.runtime.manifest import Manifest, Promise, Verification


def measured(manifest: Manifest, backend: Backend) -> Verification | None:
    """The export's measurement of the file that a back end runs, with this back end on this kind of device if possible.

    None for a precision that is not in the bundle, which a program's own back end may have.
    """
    if backend.precision not in manifest.variants:
        return None
    found = manifest.variants[backend.precision].verifications
    same = [one for one in found if one.backend == backend.name]
    here = [one for one in same if one.device.partition(":")[0] == backend.device.kind]
    return (here or same or list(found))[0]


def promise(manifest: Manifest, backend: Backend, share: float) -> Promise:
    """The row of the promise `share`, from 0 to 1, for the file that a back end runs.

    Raises:
        BundleError: The bundle has no promises: its export had no or too few labeled images, or was older.
        UsageError: The bundle has promises, but none of this share.
    """
    if manifest.activation == "sigmoid":
        raise UsageError(
            f"{manifest.name} gives an image several labels, and a share of right answers is promised for one alone",
            "leave out the share, and read the labels above their thresholds",
        )
    found = measured(manifest, backend)
    rows = found.promises if found else ()
    what = f"{manifest.name} in {backend.precision}"
    if not rows:
        raise BundleError(
            f"{what}: the bundle promises no share of right answers, asked for {share:g}",
            "export it again with a few thousand labeled test images",
        )
    for row in rows:
        if abs(row.promised - share) < 1e-9:
            return row
    there = ", ".join(f"{row.promised:g}" for row in rows)
    raise UsageError(f"{what}: the share {share:g} is not promised", f"choose one of {there}")


def stated(row: Promise, labels: tuple[str, ...]) -> str:
    """A promise in one line, with its measurement and the classes that do not reach it."""
    checked = row.checked
    weak = f"; less often right: {', '.join(labels[index] for index in row.weak)}" if row.weak else ""
    right, answered = checked.right / checked.answered, checked.answered / checked.images
    return (
        f"sure from a probability of {row.threshold:g}: at export {checked.right:,} of {checked.answered:,} such "
        f"answers were right ({right:.1%}), and {answered:.0%} of the images had one{weak}; "
        "images of unknown objects can get one, too"
    )
