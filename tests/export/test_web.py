"""The page of `convexport --web`, as a person opens it: by double click, offline, on a desk and on a phone."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from convexport.export.web import page as pages
from convexport.export.web import runtime as runtimes
from convexport.export.web.page import write_page
from convexport.export.web.runtime import WebRuntime, web_runtime
from convexport.runtime import atomic
from convexport.runtime.classifier import Classifier
from convexport.runtime.errors import StorageError, UnavailableError, UsageError
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from helpers.bundles import change_manifest, make_bundle
from helpers.headless_browser import NAMES, Page, browser, executable
from helpers.photographs import write_photographs
from helpers.readers import EXAMPLES, served

needs_a_browser = pytest.mark.skipif(executable() is None, reason=f"needs a browser on PATH: {', '.join(NAMES)}")
STARTED = (
    "(async () => {for (let i = 0; i < 1200 && !window.convexport; i++) await new Promise((go) => setTimeout(go, 50));"
    " return {...window.convexport, said: document.getElementById('proof').textContent}})()"
)
INPUT = Input(height=12, width=16, channels=3)


@pytest.fixture(scope="module")
def runtime() -> WebRuntime:
    if shutil.which("npm") is None:
        pytest.skip("needs npm on PATH, which brings onnxruntime-web")
    try:
        return web_runtime()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", INPUT, precisions=("fp32", "fp16"))


@pytest.fixture(scope="module")
def window() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def written(bundle: Path, runtime: WebRuntime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(bundle, tmp_path_factory.mktemp("out"), runtime).path


def opened(window: Page, address: str, **look: Any) -> dict[str, Any]:
    window.requests.clear()
    window.problems.clear()
    window.open(address, **look)
    found: dict[str, Any] = window.run(STARTED)
    return found


def test_the_page_holds_the_license_and_the_third_party_notices_of_its_runtime(written: Path) -> None:
    text = written.read_text("utf-8")
    assert "Copyright (c) Microsoft Corporation" in text
    assert "Third-party notices of ONNX Runtime" in text
    assert "protocolbuffers/protobuf" in text


def test_without_third_party_notices_no_page_is_written(
    bundle: Path, runtime: WebRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "NOTICES", "nowhere.txt")
    with pytest.raises(UnavailableError, match=r"^the installed onnxruntime holds no nowhere\.txt .*wheel again$"):
        write_page(bundle, tmp_path, runtime)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_several_images_at_once_gets_no_page(tmp_path: Path, runtime: WebRuntime) -> None:
    made = make_bundle(tmp_path / "four", Input(height=12, width=12, channels=3), batch=4)
    with pytest.raises(UsageError) as caught:
        write_page(made, tmp_path / "out", runtime)
    fix = "leave out the page, or export the network again with a dynamic batch"
    assert str(caught.value) == f"four takes 4 images at once, and the page has one; {fix}"


@needs_a_browser
def test_it_opens_as_a_file_asks_for_nothing_and_proves_itself(window: Page, written: Path) -> None:
    found = opened(window, written.as_uri())
    assert found["proof"]["passed"] is True
    assert found["proof"]["largest"] < 1e-5
    assert found["said"].startswith("Proved: 2 golden images give the export's probabilities within ")
    assert [url for url in window.requests if not url.startswith(("data:", "blob:"))] == [written.as_uri()]
    assert window.problems == []


@needs_a_browser
def test_it_says_so_where_it_computes_other_answers(
    window: Page, runtime: WebRuntime, bundle: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    manifest = msgspec.json.decode((other / "bundle.json").read_bytes())
    manifest["golden"][0]["probabilities"].reverse()
    change_manifest(other, golden=manifest["golden"])
    found = opened(window, write_page(other, tmp_path, runtime).path.as_uri())
    assert found["proof"]["passed"] is False
    assert found["said"].startswith(
        "This browser computes other answers than the export: 1 of 2 golden images get the same label"
    )
    assert "Do not trust what follows." in found["said"]


@needs_a_browser
def test_a_picture_gets_the_runtimes_probabilities(window: Page, written: Path, bundle: Path, tmp_path: Path) -> None:
    opened(window, written.as_uri())
    with Classifier(bundle, device="cpu", backend="onnxruntime", precision="fp32") as classifier:
        for path in write_photographs(tmp_path):
            data = json.dumps(list(path.read_bytes()))
            found = window.run(f"convexport.classifyFile(new Blob([Uint8Array.from({data})]))")
            expected = classifier.probabilities(load_image(path, INPUT)[0][None])[0]
            assert np.abs(np.array(found) - expected).max() < 1e-5, path.name


@needs_a_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_fits_a_desk_and_a_phone_and_is_used_by_keyboard(
    window: Page, written: Path, width: int, dark: bool
) -> None:
    opened(window, written.as_uri(), width=width, dark=dark)
    reached = "(() => {const all = [...document.querySelectorAll('button, input, select, summary')]; return all"
    assert window.run(reached + ".filter((e) => e.offsetParent && (e.tabIndex < 0 || e.disabled)).length})()") == 0
    window.run("document.querySelector('#examples button').focus()")
    window.press("Enter")
    shown = "(async () => {for (let i = 0; i < 200 && document.getElementById('answer').hidden; i++) await new Promise("
    window.run(shown + "(go) => setTimeout(go, 20))})()")
    assert window.run("document.querySelectorAll('#bars li').length") == 5
    window.run("(() => {const s = document.getElementById('language'); s.value = 'fr'; s.onchange()})()")
    assert window.run("document.getElementById('label').textContent") in {
        *("avion", "automobile", "oiseau", "chat", "cerf", "chien", "grenouille", "cheval", "bateau", "camion")
    }
    assert window.run("document.documentElement.scrollWidth <= innerWidth")
    assert window.problems == []


@needs_a_browser
def test_a_large_one_becomes_a_folder_for_a_server_and_says_why(
    window: Page, runtime: WebRuntime, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LARGEST_FILE", 1 << 20)
    page = write_page(bundle, tmp_path, runtime)
    assert page.path == tmp_path / "tiny-web"
    assert sorted(path.name for path in page.path.iterdir()) == [
        *("bundle.json", "index.html", "model.onnx", "runtime.mjs", "runtime.wasm")
    ]
    assert page.note == (
        "one file would have 5 MB, more than 1 MB, which browsers open slowly; serve the folder: "
        f"python -m http.server --directory {page.path}"
    )
    with served(tmp_path) as address:
        assert opened(window, f"{address}/given/tiny-web/index.html")["proof"]["passed"] is True


def test_a_folder_that_cannot_be_written_whole_leaves_the_old_one_and_nothing_else(
    runtime: WebRuntime, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LARGEST_FILE", 1 << 10)
    (tmp_path / "tiny-web").mkdir()
    (tmp_path / "tiny-web" / "old.html").touch()

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "write", full)
    with pytest.raises(StorageError) as caught:
        write_page(bundle, tmp_path, runtime)
    assert str(caught.value) == (
        f"{tmp_path}: the page cannot be written (No space left on device); "
        "free some disk space, or name another folder"
    )
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        *("tiny-web", "tiny-web/old.html")
    ]


def test_the_pages_framing_is_that_of_the_examples() -> None:
    assert (Path(pages.__file__).parent / "templates" / "framing.mjs").read_bytes() == (
        EXAMPLES / "framing.mjs"
    ).read_bytes()


def test_a_precision_that_the_bundle_lacks_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_page(bundle, tmp_path, WebRuntime({}), "int8")
    assert "int8" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_of_another_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ort.wasm.bundle.min.mjs").write_text("another")
    with pytest.raises(UnavailableError) as caught:
        web_runtime(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/ort.wasm.bundle.min.mjs is not from onnxruntime-web@1.30.0: its SHA-256 differs; "
        "name a folder of that package"
    )


def test_without_npm_the_error_names_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEXPORT_CACHE", str(tmp_path))
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError) as caught:
        web_runtime()
    assert str(caught.value) == (
        "a page needs the files of onnxruntime-web@1.30.0, and npm is not installed; "
        "install npm, or name a folder of that package with --web-runtime"
    )
