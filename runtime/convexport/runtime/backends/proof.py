"""The proof that a machine computes what the export computed: runs the golden images and remembers the result.

A proof belongs to a bundle, a back end and its version, a precision, a device and a kind of processor. It is a small
file in the cache folder; after its removal, the next start runs the golden images again. If the file cannot be written,
every start runs them.
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

__all__ = ["GoldenResult", "failure", "golden_images", "golden_results"]


@dataclass(frozen=True)
class GoldenResult:
    """One golden image on this device, compared with the origin's float32 answer at export.

    Attributes:
        file: The image's name in the bundle.
        truth: Its true label; None if it is unknown.
        expected: The origin's class.
        label: The class on this device.
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
        """The share of the tolerance that the difference uses; infinite if it is not a number."""
        used = self.max_abs_difference / self.tolerance if self.tolerance else math.inf
        return used if math.isfinite(used) else math.inf

    @property
    def passed(self) -> bool:
        """Whether no probability differs by more than the variant's tolerance.

        So the label is the expected one, except for a tie: two classes whose probabilities differ by less than twice
        the tolerance may change places.
        """
        return self.max_abs_difference <= self.tolerance


def golden_results(bundle: Bundle, backend: Backend, batch: int = 64) -> list[GoldenResult]:
    """Runs the bundle's golden images through a back end and compares each answer with the expected one.

    Raises `BundleError` for an image that differs from the manifest, `UnavailableError` if the device fails.
    """
    manifest = bundle.manifest
    golden = manifest.golden
    if not golden:
        return []
    images = golden_images(bundle)
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


def golden_images(bundle: Bundle) -> Images:
    """The golden images, uint8 [N, H, W, C]. Raises `BundleError` for one that differs from the manifest."""
    manifest = bundle.manifest
    try:
        return np.stack([load_image(bundle.read(g.file), manifest.input, name=g.file)[0] for g in manifest.golden])
    except InputError as error:  # its hash is right but it is not an image: the bundle's fault, not the user's
        raise BundleError(f"{bundle.path}: golden image {error.message}", "export the bundle again") from error


def failure(bundle: Bundle, backend: Backend) -> str | None:
    """Why a back end must not be used here, in words; None if it has passed the golden images, now or before."""
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
        return f"{where} answers {len(wrong)} of {len(results)} golden images differently from the export"
    if place is not None and results:
        with suppress(OSError):  # a read-only home: the next start runs them again
            atomic.write(place, b"", mode=0o600)
    return None


def _place(bundle: Bundle, backend: Backend) -> Path | None:
    """The file that remembers the proof; None if there is no cache folder."""
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
