"""What PyInstaller must know: it finds `hook_dirs` through the package's entry point, and there one hook for each name.

The modules that a program imports by name only when they are needed, it cannot see.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages

from convexport import runtime
from convexport.runtime.backends.registry import BACKENDS


def hook_dirs() -> list[str]:
    """The folder of the hooks."""
    return [str(Path(__file__).parent)]


def imported_late() -> list[str]:
    """The modules of the runtime, and the libraries of back ends and formats that are installed."""
    own = [module.name for module in walk_packages(runtime.__path__, f"{runtime.__name__}.")]
    libraries = [name for spec in BACKENDS.values() for name in spec.libraries]
    return [*own, *filter(_is_installed, [*libraries, "pillow_heif", "pillow_heif.as_plugin"])]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:  # the package that should hold it is missing
        return False
