"""Install commands in messages, in the form that works for the installation at hand.

Messages of the library name `pip install 'convexport[EXTRA]'`, as for a release. An installation from a folder, a wheel
or a repository (PEP 610) has another requirement, and one by pipx or uv has another installer.
"""

from __future__ import annotations

import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

_RELEASE = re.compile(r"'convexport\[([a-z,-]+)\]'")
_PIP = re.compile(r"\bpip (?=(?:un)?install )")


def here(text: str) -> str:
    """`text` with its install commands in the form for this installation of convexport."""
    if "pip " not in text:
        return text
    source = _source()
    if source is not None:
        text = _RELEASE.sub(lambda found: source.requirement(found[1]), text)
    return _with_installer(text)


class _Source(NamedTuple):
    """Where convexport was installed from, as the parts of a requirement around its extras."""

    before: str
    after: str = ""
    editable: bool = False

    def requirement(self, extras: str) -> str:
        """What to write behind `pip install`."""
        quoted = shlex.quote(f"{self.before}[{extras}]{self.after}")
        return f"--editable {quoted}" if self.editable else quoted


@cache
def _source() -> _Source | None:
    """The source of the installation; None for a release, or if the source does not exist any more.

    https://packaging.python.org/en/latest/specifications/direct-url/
    """
    import json
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    try:
        found = json.loads(metadata.distribution("convexport").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    url = str(found.get("url", ""))
    parts = urlsplit(url)
    if "vcs_info" in found:
        facts = found["vcs_info"]
        return _Source("convexport", f" @ {facts['vcs']}+{url}@{facts['commit_id']}")
    if parts.scheme == "file":
        place = Path(unquote(parts.path))
        return _Source(str(place), editable=bool(found.get("dir_info", {}).get("editable"))) if place.exists() else None
    return _Source("convexport", f" @ {url}") if url else None


def _with_installer(text: str) -> str:
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").is_file():
        return _PIP.sub(f"pipx runpip {shlex.quote(prefix.name)} ", text)
    if _made_by_uv(prefix):
        # uv asks nothing and has no `-y`. Without `--python` it takes an activated environment only.
        python = f"--python {shlex.quote(sys.executable)}"
        return re.sub(r"\bpip (install|uninstall)(?: -y)? ", lambda found: f"uv pip {found[1]} {python} ", text)
    return text


def _made_by_uv(prefix: Path) -> bool:
    """Whether the environment is uv's and contains no pip: of `uv tool install`, `uv venv` or `uv sync`."""
    try:
        configuration = (prefix / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:  # the system's Python, or conda's
        return False
    return re.search(r"^uv = ", configuration, re.MULTILINE) is not None and not (prefix / "bin" / "pip").exists()
