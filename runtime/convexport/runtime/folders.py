"""The cache folder, for files that can be made again: engines, and proofs of the golden images."""

from __future__ import annotations

import os
from pathlib import Path

from convexport.runtime.errors import UnavailableError, first_line


def cache_folder() -> Path:
    """`$CONVEXPORT_CACHE`, else `$XDG_CACHE_HOME/convexport`, else `~/.cache/convexport`; it need not exist yet.

    A relative `$XDG_CACHE_HOME` is ignored, as the XDG specification says. Raises `UnavailableError` for a user without
    a home folder, as in some containers.
    """
    chosen = os.environ.get("CONVEXPORT_CACHE")
    if chosen:
        return Path(chosen)
    caches, home = Path(os.environ.get("XDG_CACHE_HOME", "")), os.environ.get("HOME", "/")
    if caches.is_absolute():
        return caches / "convexport"
    try:
        if not Path(home).is_absolute():  # an empty one would be the root folder for Python
            raise RuntimeError(f"HOME is {home!r}, expected an absolute path")
        return Path.home() / ".cache" / "convexport"
    except RuntimeError as error:
        raise UnavailableError(
            f"there is no folder for a cache ({first_line(error)})", "set CONVEXPORT_CACHE to a folder of your own"
        ) from error
