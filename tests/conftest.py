"""What every test runs in."""

from __future__ import annotations

import pytest

from convexport.cli import installing


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVEXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _as_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install commands in messages are those of a release, however convexport was installed here."""
    monkeypatch.setattr(installing, "here", str)
