"""Bundle and images -> records. Needs numpy, Pillow and msgspec; a back end's library inside that back end only.

    from convexport.runtime import Classifier

    with Classifier("bundles/lenet5-mnist") as classifier:
        print(classifier.classify_one("seven.png").label)

The names below are the public API. Each is imported at its first use, so that importing this package loads neither
numpy nor Pillow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convexport.runtime.backends.base import Backend, Images, Probabilities
    from convexport.runtime.backends.fake import FakeBackend
    from convexport.runtime.backends.proof import GoldenResult
    from convexport.runtime.bundle import Bundle, open_bundle
    from convexport.runtime.classifier import Classifier, Progress
    from convexport.runtime.devices import Device
    from convexport.runtime.errors import (
        ArtifactError,
        BackendError,
        BundleError,
        ConvexportError,
        DeviceError,
        EngineError,
        GateRefused,
        InputError,
        UnavailableError,
        UsageError,
    )
    from convexport.runtime.inputs import Given, Source
    from convexport.runtime.options import Options
    from convexport.runtime.profiling import Profile
    from convexport.runtime.records import Candidate, Failure, Prediction, Problem, Record, to_table
    from convexport.runtime.searching import find_images

    __version__: str

__all__ = [
    "ArtifactError",
    "Backend",
    "BackendError",
    "Bundle",
    "BundleError",
    "Candidate",
    "Classifier",
    "ConvexportError",
    "Device",
    "DeviceError",
    "EngineError",
    "Failure",
    "FakeBackend",
    "GateRefused",
    "Given",
    "GoldenResult",
    "Images",
    "InputError",
    "Options",
    "Prediction",
    "Probabilities",
    "Problem",
    "Profile",
    "Progress",
    "Record",
    "Source",
    "UnavailableError",
    "UsageError",
    "__version__",
    "find_images",
    "open_bundle",
    "to_table",
]

_HOMES = {
    "backends.base": ("Backend", "Images", "Probabilities"),
    "backends.fake": ("FakeBackend",),
    "backends.proof": ("GoldenResult",),
    "bundle": ("Bundle", "open_bundle"),
    "classifier": ("Classifier", "Progress"),
    "devices": ("Device",),
    "inputs": ("Given", "Source"),
    "searching": ("find_images",),
    "options": ("Options",),
    "profiling": ("Profile",),
    "records": ("Candidate", "Failure", "Prediction", "Problem", "Record", "to_table"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # a type checker that sees it would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib import metadata

            try:
                found = metadata.version("convexport")
            except metadata.PackageNotFoundError:  # frozen without its metadata, or on the path without an installation
                found = "0+unknown"
        elif name in __all__:
            found = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
