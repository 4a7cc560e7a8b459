"""The proof that a machine computes what the export computed: the golden images, run once and remembered.

A proof belongs to a bundle, a back end and its version, a precision, a device and a kind of processor. It is a small
file in the cache folder; removing it makes the next start prove again, and where none can be written it is proved at
every start.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convexport.runtime import atomic
from convexport.runtime.backends.answers import checked
from convexport.runtime.backends.base import Backend, Images
from convexport.runtime.bundle import Bundle
from convexport.runtime.devices import processor_kind
from convexport.runtime.errors import BundleError, ConvexportError, InputError, UnavailableError
from convexport.runtime.folders import cache_folder
from convexport.runtime.images import load_image

__all__ = ["GoldenResult", "failure", "golden_results"]


@dataclass(frozen=True)
class GoldenResult:
    """One golden image on this device against what the origin gave it in float32 at export.

    Attributes:
        file: The image's name in the bundle.
        truth: Its true label; None where it is not known.
        expected: The class that the origin gave.
        label: The class found here.
        max_abs_difference: The largest difference between two probabilities of one class.
        tolerance: The largest difference that passes.
    """

    file: str
    truth: str | None
    expected: str
    label: str
    max_abs_difference: float
    tolerance: float

    @property
    def used(self) -> float:
        """The share of the tolerance that the difference uses; infinite where it is no number."""
        used = self.max_abs_difference / self.tolerance if self.tolerance else math.inf
        return used if math.isfinite(used) else math.inf

    @property
    def passed(self) -> bool:
        """No probability further away than the variant's tolerance.

        So the label is the expected one, but for a tie: two classes that are closer together than twice the tolerance
        may honestly change places.
        """
        return self.max_abs_difference <= self.tolerance


def golden_results(bundle: Bundle, backend: Backend, batch: int = 64) -> list[GoldenResult]:
    """The bundle's golden images through a back end, each beside what it should give.

    Raises `BundleError` for an image that is not as listed, `UnavailableError` where the device fails.
    """
    manifest = bundle.manifest
    golden = manifest.golden
    if not golden:
        return []
    images = _golden_images(bundle)
    parts = [images[i : i + batch] for i in range(0, len(images), batch)]
    found = np.concatenate([checked(backend.run(part), len(part), backend, manifest) for part in parts])
    names = manifest.classes
    tolerance = manifest.variants[backend.precision].golden_tolerance
    return [
        GoldenResult(
            file=g.file,
            truth=g.label,
            expected=names[int(np.argmax(g.probabilities))],
            label=names[int(np.argmax(p))],
            # NaN stays NaN and so passes no tolerance.
            max_abs_difference=float(np.abs(np.asarray(g.probabilities) - p).max()),
            tolerance=tolerance,
        )
        for g, p in zip(golden, found, strict=True)
    ]


def _golden_images(bundle: Bundle) -> Images:
    manifest = bundle.manifest
    try:
        return np.stack([load_image(bundle.read(g.file), manifest.input, name=g.file)[0] for g in manifest.golden])
    except InputError as error:  # as listed, and yet no image: the bundle is at fault, not what a user handed in
        raise BundleError(f"{bundle.path}: golden image {error.message}", "export the bundle again") from error


def failure(bundle: Bundle, backend: Backend) -> str | None:
    """Why a back end must not serve here, in words; None where it has proved itself, now or before."""
    place = _place(bundle, backend)
    if place is not None and place.is_file():
        return None
    where = f"{backend.name} on {backend.device} in {backend.precision}"
    try:
        results = golden_results(bundle, backend)
    except UnavailableError as error:
        return f"{where} failed on the golden images ({error.message})"
    wrong = [result for result in results if not result.passed]
    if wrong:
        return f"{where} gives other answers than the export on {len(wrong)} of {len(results)} golden images"
    if place is not None and results:
        with suppress(OSError):  # a read-only home: it is proved again next time
            atomic.write(place, b"", mode=0o600)
    return None


def _place(bundle: Bundle, backend: Backend) -> Path | None:
    """The file that remembers the proof; None where there is no place for a cache."""
    manifest = bundle.manifest
    golden = "".join(manifest.files[g.file].sha256 + repr(g.probabilities) for g in manifest.golden)
    facts = (
        *(bundle.sha256(manifest.variants[backend.precision].file), golden),
        *(backend.name, backend.version, str(backend.device), backend.precision, processor_kind()),
    )
    try:
        return cache_folder() / "proofs" / hashlib.sha256("\0".join(facts).encode()).hexdigest()
    except ConvexportError:  # a user without a home
        return None
