"""The runtime of a web page: the two files of one pinned release of onnxruntime-web, checked by SHA-256.

Only an export needs them. They come from a folder of that package, or from npm into the cache.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from convexport.runtime import atomic
from convexport.runtime.errors import UnavailableError, first_line
from convexport.runtime.folders import cache_folder

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
# The package's files that are used, by their names in a page.
FILES = {
    "runtime.mjs": ("ort.wasm.bundle.min.mjs", "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
    "runtime.wasm": (
        "ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}
# What is linked into the WASM file has notices of its own. The package for browsers leaves them out, the one for Python
# has them, of the same sources.
NOTICES = "ThirdPartyNotices.txt"
LICENSE = (Path(__file__).parent / "templates" / "onnxruntime-license.txt").read_text("utf-8")
_SECONDS = 300


@dataclass(frozen=True)
class WebRuntime:
    """The runtime's files by their names in a page."""

    files: dict[str, bytes]


def web_runtime(folder: Path | None = None) -> WebRuntime:
    """The pinned release, from `folder` (an unpacked onnxruntime-web), else from the cache, else from npm.

    Raises `UnavailableError` if it cannot be found, or if a file is not that of the pinned release.
    """
    if folder is not None:
        return _read(folder)
    cached = cache_folder() / "web" / PACKAGE
    if not all((cached / name).is_file() for name, _ in FILES.values()):
        _fetch(cached)
    return _read(cached)


def notices() -> str:
    """The third-party notices of ONNX Runtime, as the installed package for Python has them.

    Raises `UnavailableError` where it has none.
    """
    try:
        return files("onnxruntime").joinpath(NOTICES).read_text("utf-8")
    except OSError as error:
        raise UnavailableError(
            f"the installed onnxruntime holds no {NOTICES} ({first_line(error)})", "install its wheel again"
        ) from error


def _read(folder: Path) -> WebRuntime:
    found = {}
    for name, (file, sha256) in FILES.items():
        place = next((place for place in (folder / file, folder / "dist" / file) if place.is_file()), None)
        if place is None:
            raise UnavailableError(f"{folder} contains no {file}", f"name a folder of {PACKAGE}, as npm unpacks it")
        found[name] = place.read_bytes()
        if hashlib.sha256(found[name]).hexdigest() != sha256:
            raise UnavailableError(
                f"{place} is not from {PACKAGE}: its SHA-256 differs", "name a folder of that package"
            )
    return WebRuntime(found)


def _fetch(target: Path) -> None:
    """Packs the release with npm and keeps the files that are needed."""
    if shutil.which("npm") is None:
        raise UnavailableError(
            f"a page needs the files of {PACKAGE}, and npm is not installed",
            "install npm, or name a folder of that package with --web-runtime",
        )
    with tempfile.TemporaryDirectory() as place:
        command = ["npm", "pack", "--silent", "--ignore-scripts", PACKAGE]
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _unreachable(first_line(error)) from error
        packed = next(Path(place).glob("*.tgz"), None)
        if done.returncode or packed is None:
            raise _unreachable(next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}"))
        with tarfile.open(packed) as archive:
            for name, _ in FILES.values():
                member = archive.extractfile(f"package/dist/{name}")
                if member is not None:
                    target.mkdir(parents=True, exist_ok=True)
                    atomic.write(target / name, member.read())


def _unreachable(reason: str) -> UnavailableError:
    return UnavailableError(
        f"npm could not download {PACKAGE} ({reason})", "name a folder of that package with --web-runtime"
    )
