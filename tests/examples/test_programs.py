"""The programs under examples/programs run as they stand, where their libraries are installed."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from convexport.runtime import Classifier
from convexport.runtime.manifest import Input
from helpers.bundles import make_bundle, pictures, png
from helpers.markdown_pages import ROOT

PROGRAMS = ROOT / "examples/programs"
INPUT = Input(height=12, width=12, channels=3)
IMAGES = 8
HOW = "pip install --group examples"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", INPUT)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images and a damaged one."""
    folder = tmp_path_factory.mktemp("images")
    for number, picture in enumerate(pictures(IMAGES, INPUT)):
        (folder / f"{number}.png").write_bytes(png(picture))
    (folder / "broken.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def expected(bundle: Path, images: Path) -> dict[str, str]:
    """Labels by path, "" for the damaged one."""
    with Classifier(bundle) as classifier:
        records = classifier.classify(sorted(images.iterdir()))
        return {record.input: record.label if record.ok else "" for record in records}


def needs(*libraries: str) -> None:
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: {HOW}")


def run(*arguments: object, bundle: Path | None = None, text: str | None = None) -> str:
    """A program of the folder -> what it prints."""
    environment = {**os.environ, "CONVEXPORT_BUNDLE": str(bundle)} if bundle else None
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=PROGRAMS,
        input=text,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_program_is_longer_than_twenty_lines() -> None:
    sizes = {path.name: len(path.read_text().splitlines()) for path in PROGRAMS.glob("*.py")}
    assert len(sizes) > 4
    assert {name: size for name, size in sizes.items() if size > 20} == {}


def test_json(bundle: Path, images: Path, expected: dict[str, str]) -> None:
    found = json.loads(run("records_json.py", bundle, images))
    assert {record["input"]: record.get("label", "") for record in found["records"]} == expected
    assert found["classifier"]["network"] == "tiny"


def test_typed(bundle: Path, images: Path) -> None:
    lines = run("typed.py", bundle, *sorted(images.iterdir())).splitlines()
    assert len(lines) == IMAGES + 1
    assert lines[-1].startswith(f"{images / 'broken.png'}: not an image")


@pytest.mark.slow
def test_typed_is_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mypy")
    monkeypatch.setenv("MYPYPATH", str(ROOT / "runtime"))
    options = ("--strict", "--namespace-packages", "--explicit-package-bases", f"--cache-dir={ROOT / '.mypy_cache'}")
    assert run("-m", "mypy", *options, "typed.py") == "Success: no issues found in 1 source file\n"


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_joblib(bundle: Path, images: Path, expected: dict[str, str], backend: str) -> None:
    needs("joblib")
    lines = run("parallel_joblib.py", backend, bundle, images).splitlines()
    assert sorted(lines) == sorted(str(item) for item in expected.items())


def test_pandas(bundle: Path, images: Path) -> None:
    needs("pandas")
    found = run("table_pandas.py", bundle, images)
    assert "unreadable" in found
    assert "count" in found


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_a_table_has_one_schema_with_and_without_failures(bundle: Path, images: Path, library: str) -> None:
    needs(library)
    program = """
import sys
from convexport.runtime import Classifier, to_table
with Classifier(sys.argv[1]) as classifier:
    tables = [to_table(classifier.classify(sys.argv[2:][part]), top=2) for part in (slice(8), slice(8, 9), slice(9))]
if LIBRARY == "pandas":
    import pandas
    found = [dict(pandas.DataFrame(table).dtypes.astype(str)) for table in tables]
else:
    import pyarrow
    found = [pyarrow.table(table).schema for table in tables]
print(found[0] == found[1] == found[2])
"""
    code = program.replace("LIBRARY", repr(library))
    assert run("-c", code, bundle, *sorted(images.iterdir())) == "True\n"


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a server that listens on a socket in the file system."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.host)


def served(command: list[str], place: Path, bundle: Path, paths: list[str]) -> tuple[list[tuple[int, str]], int, str]:
    """Each file sent to a server by one of eight clients -> status and label; the server's exit code and stderr."""

    def post(path: str) -> tuple[int, str]:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}  # as `curl --data-binary` sends it
        with closing(UnixConnection(str(place), timeout=60)) as connection:
            connection.request("POST", "/", Path(path).read_bytes(), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()).get("label", "")

    environment = {**os.environ, "CONVEXPORT_BUNDLE": str(bundle)}
    with subprocess.Popen(
        [sys.executable, "-m", *command], cwd=PROGRAMS, env=environment, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            deadline = time.monotonic() + 60
            while not place.exists():
                assert server.poll() is None, server.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(post, paths))
        finally:
            server.terminate()
            said = server.communicate(timeout=60)[1]
    return found, server.returncode, said


def test_fastapi_with_its_pool_of_threads(bundle: Path, images: Path, expected: dict[str, str], tmp_path: Path) -> None:
    needs("fastapi", "uvicorn")
    command = ["uvicorn", "--uds", str(tmp_path / "s"), "--log-level", "warning", "server_fastapi:app"]
    found, _, said = served(command, tmp_path / "s", bundle, [*expected] * 4)
    assert found == [(200 if label else 422, label) for label in expected.values()] * 4
    assert [line for line in said.splitlines() if not line.startswith("classify: ")] == []


@pytest.mark.parametrize("more", [[], ["--threads", "4"], ["--max-requests", "5"]], ids=" ".join)
def test_gunicorn_that_forks_after_the_classifier_was_opened(
    bundle: Path, images: Path, expected: dict[str, str], tmp_path: Path, more: list[str]
) -> None:
    needs("gunicorn")
    command = ["gunicorn", "--preload", "--workers", "2", *more, "--bind", f"unix:{tmp_path / 's'}", "server_wsgi:app"]
    found, code, said = served(command, tmp_path / "s", bundle, [*expected] * 4)
    assert found == [(200 if label else 422, label) for label in expected.values()] * 4
    assert code == 0, said
    assert [line for line in said.splitlines() if "ERROR" in line or "WARNING" in line] == []


def test_a_notebook_run_by_nbconvert(bundle: Path, tmp_path: Path) -> None:
    needs("nbconvert", "ipykernel")
    arguments = ("--to", "notebook", "--execute", "--output-dir", tmp_path, "notebook.ipynb")
    run("-m", "nbconvert", *arguments, bundle=bundle)
    cells = json.loads((tmp_path / "notebook.ipynb").read_text())["cells"]
    shown, table = (cell["outputs"][0]["data"] for cell in cells if cell["cell_type"] == "code")
    assert "<caption>Classifier tiny</caption>" in "".join(shown["text/html"])
    assert "".join(shown["text/plain"]).startswith("<Classifier tiny: tiny, onnxruntime on cpu in fp32")
    assert "'ok': [True, False]" in "".join(table["text/plain"])
