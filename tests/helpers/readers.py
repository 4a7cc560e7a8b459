"""The readers of examples/: how each is run here, or why it cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import onnxruntime

from helpers.headless_browser import NAMES, browser, executable

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# Debian's libonnxruntime-dev puts the headers there; else a folder that this variable names.
HEADERS = (os.environ.get("CONVEXPORT_ORT_HEADERS", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime")


@dataclass(frozen=True)
class Answer:
    """What a reader printed: its exit code, its line on the golden images, and a record for each image."""

    code: int
    proof: dict[str, Any]
    records: list[dict[str, Any]]


def node_missing() -> str | None:
    """Why the reader for Node cannot run here."""
    if shutil.which("node") is None:
        return "needs node on PATH"
    if not (EXAMPLES / "node" / "node_modules" / "onnxruntime-node").is_dir():
        return "needs `npm install --ignore-scripts` in examples/node"
    return None


def node(bundle: Path, precision: str, pictures: Sequence[Path] = ()) -> Answer:
    """The reader for Node on a bundle."""
    return _answer(["node", EXAMPLES / "node" / "classify.mjs", "--precision", precision, bundle, *pictures])


def cpp_missing() -> str | None:
    """Why the reader in C++ cannot be built here."""
    missing = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    if missing:
        return f"needs {' and '.join(missing)} on PATH"
    if _headers() is None:
        return "needs ONNX Runtime's C++ headers: Debian's libonnxruntime-dev, or $CONVEXPORT_ORT_HEADERS"
    places = [Path(place) for place in ("/usr/include", "/usr/local/include")]
    for header in ("jpeglib.h", "png.h", "openssl/sha.h", "nlohmann/json.hpp"):
        if not any((place / header).is_file() for place in places):
            return f"needs {header}: apt-get install libjpeg-dev libpng-dev libssl-dev nlohmann-json3-dev"
    return None


def build_cpp(folder: Path) -> Path:
    """Builds the reader in C++ against the library of the installed `onnxruntime` wheel -> the program."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the name to link with, and the one it is loaded by
        (folder / name).symlink_to(library)
    options = (f"-DONNXRUNTIME_INCLUDE={_headers()}", f"-DONNXRUNTIME_LIBRARY={folder / 'libonnxruntime.so'}")
    build = folder / "build"
    for command in (["cmake", "-S", EXAMPLES / "cpp", "-B", build, *options], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "warning:" not in done.stdout + done.stderr
    return build / "classify"


def cpp(program: Path, bundle: Path, precision: str, pictures: Sequence[Path] = ()) -> Answer:
    """The reader in C++ on a bundle."""
    return _answer([program, bundle, precision, *pictures])


def _headers() -> str | None:
    found = (place for place in HEADERS if place and (Path(place) / "onnxruntime_cxx_api.h").is_file())
    return next(found, None)


def _answer(command: Sequence[str | Path]) -> Answer:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.stdout, done.stderr
    proof, *records = (json.loads(line) for line in done.stdout.splitlines())
    return Answer(done.returncode, proof, records)


def browser_missing() -> str | None:
    """Why the reader for browsers cannot run here."""
    if executable() is None:
        return f"needs a browser on PATH: {', '.join(NAMES)}"
    if not (EXAMPLES / "browser" / "node_modules" / "onnxruntime-web").is_dir():
        return "needs `npm install --ignore-scripts` in examples/browser"
    return None


class _Quiet(SimpleHTTPRequestHandler):
    """Files of two folders: /examples/... and /given/... ."""

    def __init__(self, *arguments: Any, given: Path, **names: Any) -> None:
        self._given = given
        super().__init__(*arguments, **names)

    def translate_path(self, path: str) -> str:
        kind, _, rest = unquote(path.partition("?")[0]).lstrip("/").partition("/")
        return str({"examples": EXAMPLES, "given": self._given}[kind] / rest)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def served(given: Path) -> Iterator[str]:
    """A server on this machine with the examples, and the folder `given` -> its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, given=given)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def in_browser(given: Path, bundle: Path, precision: str, pictures: Sequence[Path] = ()) -> Answer:
    """The reader for browsers on a bundle; bundle and images lie under `given`."""
    places = [f"/given/{path.relative_to(given)}" for path in pictures]
    script = (
        "(async () => {const reader = await window.reader, records = []; for (const place of %s)"
        " records.push(await reader.classify(place, await (await fetch(place)).blob()));"
        " return {proof: reader.proof, records}})()"
    )
    with served(given) as address, browser() as page:
        page.open(f"{address}/examples/browser/?bundle=/given/{bundle.relative_to(given)}/&precision={precision}")
        found = page.run(script % json.dumps(places))
        assert page.problems == []
    return Answer(0 if found["proof"]["passed"] else 6, found["proof"], found["records"])
