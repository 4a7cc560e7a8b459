"""Install commands in messages: what works depends on how convexport was installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from convexport.cli import installing

here = installing.here  # conftest.py replaces it

EXTRA = "torch is not installed; pip install 'convexport[export,cpu]'"
WRONG_WHEEL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'convexport[gpu]'"
OTHER = "pip install 'pillow>=11.3'"

Install = Callable[[dict[str, Any] | None], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts the metadata of an installation first on the path: what pip writes to `direct_url.json`, or nothing."""

    def put(direct_url: dict[str, Any] | None) -> None:
        folder = tmp_path / "site" / "convexport-0.2.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.4\nName: convexport\nVersion: 0.2.0\n")
        if direct_url is not None:
            (folder / "direct_url.json").write_text(json.dumps(direct_url))
        monkeypatch.syspath_prepend(str(folder.parent))
        installing._source.cache_clear()

    prefix = tmp_path / "prefix"
    prefix.mkdir()
    monkeypatch.setattr(sys, "prefix", str(prefix))
    yield put
    installing._source.cache_clear()


def test_a_release_is_named_as_the_library_names_it(install: Install) -> None:
    install(None)
    assert [here(text) for text in (EXTRA, WRONG_WHEEL, OTHER)] == [EXTRA, WRONG_WHEEL, OTHER]


def test_a_clone_and_a_wheel_are_named_by_their_place(install: Install, tmp_path: Path) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    install({"url": clone.as_uri(), "dir_info": {}})
    assert here(EXTRA) == f"torch is not installed; pip install '{clone}[export,cpu]'"
    assert here(WRONG_WHEEL) == f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install '{clone}[gpu]'"
    assert here(OTHER) == OTHER


def test_an_editable_clone_stays_editable(install: Install, tmp_path: Path) -> None:
    install({"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert here(EXTRA) == f"torch is not installed; pip install --editable '{tmp_path}[export,cpu]'"


def test_a_source_that_is_gone_is_not_named(install: Install, tmp_path: Path) -> None:
    install({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    assert here(EXTRA) == EXTRA


def test_a_repository_and_an_address_are_named_as_requirements(install: Install) -> None:
    install({"url": "https://example.org/convexport.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}})
    assert here(EXTRA) == (
        "torch is not installed; pip install 'convexport[export,cpu] @ git+https://example.org/convexport.git@c0ffee'"
    )


def test_an_address_of_a_wheel_is_named_as_a_requirement(install: Install) -> None:
    install({"url": "https://example.org/convexport.whl", "archive_info": {}})
    assert here("pip install 'convexport[cpu]'") == "pip install 'convexport[cpu] @ https://example.org/convexport.whl'"


def test_an_installation_by_pipx_is_changed_by_pipx(install: Install) -> None:
    install(None)
    (Path(sys.prefix) / "pipx_metadata.json").write_text("{}")
    assert here(WRONG_WHEEL) == (
        "pipx runpip prefix uninstall -y onnxruntime onnxruntime-gpu && pipx runpip prefix install 'convexport[gpu]'"
    )


def test_an_environment_of_uv_without_pip_is_changed_by_uv(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install({"url": tmp_path.as_uri(), "dir_info": {}})
    monkeypatch.setattr(sys, "executable", "/tools/bin/python")
    (Path(sys.prefix) / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9.1\n")
    assert here(WRONG_WHEEL) == (
        "uv pip uninstall --python /tools/bin/python onnxruntime onnxruntime-gpu && "
        f"uv pip install --python /tools/bin/python '{tmp_path}[gpu]'"
    )


def test_an_environment_of_uv_with_pip_is_changed_by_pip(install: Install) -> None:
    install(None)
    (Path(sys.prefix) / "pyvenv.cfg").write_text("uv = 0.9.1\n")
    (Path(sys.prefix) / "bin").mkdir()
    (Path(sys.prefix) / "bin" / "pip").touch()
    assert here(OTHER) == OTHER
