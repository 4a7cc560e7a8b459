"""Whether an answer is sure: by the promises that an export made, from labelled images, in `Verification.promises`."""

from __future__ import annotations

from convexport.runtime.backends.base import Backend
from convexport.runtime.errors import BundleError, UsageError
from convexport.runtime.manifest import Manifest, Promise, Verification


def measured(manifest: Manifest, backend: Backend) -> Verification | None:
    """What the export measured on the file that a back end runs: by this back end on this kind of device if it was.

    None for a precision that the bundle does not hold, which a back end of a program's own may have.
    """
    if backend.precision not in manifest.variants:
        return None
    found = manifest.variants[backend.precision].verifications
    same = [one for one in found if one.backend == backend.name]
    here = [one for one in same if one.device.partition(":")[0] == backend.device.kind]
    return (here or same or list(found))[0]


def promise(manifest: Manifest, backend: Backend, share: float) -> Promise:
    """The row of the table that promises `share`, from 0 to 1, for what a back end runs.

    Raises:
        BundleError: The export promised nothing: it had no labelled images, too few, or was an older one.
        UsageError: There are promises, and none of this share.
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
            f"{what}: no share of right answers is promised, found none for {share:g}",
            "export it again with some thousand labelled test images",
        )
    for row in rows:
        if abs(row.promised - share) < 1e-9:
            return row
    there = ", ".join(f"{row.promised:g}" for row in rows)
    raise UsageError(f"{what}: the share {share:g} is not promised", f"there is {there}")


def stated(row: Promise, labels: tuple[str, ...]) -> str:
    """A promise in one line, with what it was measured on and the classes that fall short of it."""
    checked = row.checked
    weak = f"; less often right: {', '.join(labels[index] for index in row.weak)}" if row.weak else ""
    right, answered = checked.right / checked.answered, checked.answered / checked.images
    return (
        f"sure from a probability of {row.threshold:g}: at export {checked.right:,} of {checked.answered:,} such "
        f"answers were right ({right:.1%}), and {answered:.0%} of the images had one{weak}; strangers may get one too"
    )
