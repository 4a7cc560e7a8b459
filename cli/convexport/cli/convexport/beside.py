"""The optional results of an export besides the bundle: a web page, and models in a Triton repository."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from convexport.cli import terminal
from convexport.cli.convexport.wanted import precisions_asked_for
from convexport.runtime.errors import UsageError

if TYPE_CHECKING:
    from convexport.export.web.runtime import WebRuntime


def web_runtime_asked_for(options: argparse.Namespace) -> WebRuntime | None:
    """The runtime files of a page, checked before the export's work."""
    if not options.web:
        if options.web_runtime or options.web_precision:
            raise UsageError("--web-runtime and --web-precision are only for a web page", "add --web")
        return None
    if options.web_precision not in (None, "fp32", *precisions_asked_for(options)):
        raise UsageError(
            f"--web-precision {options.web_precision} is not a variant of this export",
            f"add --precision {options.web_precision}",
        )
    from convexport.export.web.runtime import web_runtime

    return web_runtime(options.web_runtime)


def write_web_page(bundle: Path, options: argparse.Namespace, runtime: WebRuntime) -> None:
    """Writes the bundle as a web page, and says where it is."""
    from convexport.export.web.page import write_page

    page = write_page(bundle, options.out, runtime, options.web_precision)
    terminal.remark(f"web page    {page.path}: {page.precision}, {page.bytes:,} bytes")
    if page.note:
        terminal.remark(f"web page    {page.note}")


def add_to_triton(bundle: Path, directory: Path) -> None:
    """Adds the bundle's models to a Triton repository, and says which."""
    from convexport.export.triton import write_repository

    repository = write_repository(bundle, directory)
    for note in repository.notes:
        terminal.remark(f"triton      {note}")
    terminal.remark(f"triton      {directory}: {', '.join(repository.models)}")
