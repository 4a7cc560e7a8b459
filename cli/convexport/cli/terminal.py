"""The one module that knows terminals: bars, colours, tables, how errors end a command.

stdout carries results and nothing else; progress and remarks go to stderr, bars only where it is a terminal.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from io import TextIOWrapper
from typing import IO, Any, NoReturn

from convexport.cli.text_lines import printable
from convexport.runtime.errors import ConvexportError, StorageError, UsageError, first_line

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def guard(program: str, command: Callable[[], int]) -> int:
    """Runs `command`; one of our errors becomes one line on stderr and its documented exit code."""
    _prepare_streams()
    try:
        code = command()
        with writing("standard output"):
            sys.stdout.flush()
        return code
    except ConvexportError as error:
        remark(f"{program}: {error}")
        _let_go_of_stdout()
        return error.exit_code
    except KeyboardInterrupt:
        remark(f"{program}: interrupted")
        return 130
    except BrokenPipeError:
        _let_go_of_stdout()
        return 0  # the reader of our stdout went away (`classify ... | head`): nobody is left to tell


def _prepare_streams() -> None:
    """Makes the three streams fit to use, whatever the caller made of them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by `2>&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open to the end
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files, which need not be text
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every encoding knows a `Δ`


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Raises `UsageError` for a place that cannot be written to, `StorageError` where there is no room."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{where}: cannot be written ({first_line(error)})", "name another place") from error
    except OSError as error:
        raise StorageError(
            f"{where}: cannot be written ({first_line(error)})", "make room, or name another place"
        ) from error


def _let_go_of_stdout() -> None:
    """Python's own flush at exit must not complain of a stdout that takes nothing more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def remark(text: str) -> None:
    """A line on stderr, and no more than that whatever names it holds."""
    print(printable(text), file=sys.stderr, flush=True)


def result(text: str) -> None:
    """A line on stdout: results and nothing else."""
    with writing("standard output"):
        print(text)


def paint(text: str, colour: str, stream: IO[str] | None = None) -> str:
    """`text` in `colour` where `stream` (stdout) is a terminal that has not asked for none (NO_COLOR)."""
    if not (stream or sys.stdout).isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns; a column whose cells are all numbers stands to the right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in {"-", "+", "±"} or text == ""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that suggest the nearest option or choice, and help that keeps its examples."""

    def __init__(self, program: str, description: str, examples: str) -> None:
        super().__init__(
            prog=program,
            description=description,
            epilog=f"examples:\n{examples.rstrip()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Like argparse's, but an unknown option comes with the nearest known one."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        # Intermixed: `classify a.png --top 3 b.png` names two files.
        found, rest = self.parse_known_intermixed_args(words[:end], namespace)
        # Intermixed parsing takes words behind `--` for options all the same.
        literal, positional = words[end + 1 :], self._get_positional_actions()
        for names in positional:
            setattr(found, names.dest, [*getattr(found, names.dest), *literal])
        rest += [] if positional else literal
        unknown = next((word for word in rest if word.startswith("-")), rest[0] if rest else None)
        if unknown is not None:
            name = unknown.split("=")[0]
            near = get_close_matches(name, self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            self.error(f"option {name} is not known; {hint}")
        return found

    def error(self, message: str) -> NoReturn:
        """One line on stderr and exit code 2."""
        remark(f"{self.prog}: {message}")
        raise SystemExit(UsageError.exit_code)


@contextmanager
def bar(description: str, *, shown: bool = True) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on stderr, where that is a terminal. Gives `update(share done, text behind the bar)`."""
    if not (shown and sys.stderr.isatty()):
        yield lambda share, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=1.0, text="")
        yield lambda share, text: progress.update(task, completed=share, text=text)
