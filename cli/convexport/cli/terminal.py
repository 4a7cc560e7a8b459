"""Everything about terminals: progress bars, colors, tables, and how errors end a command.

stdout carries results and nothing else; progress and remarks go to stderr, bars only where it is a terminal.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import IO, Any, NoReturn

from convexport.cli import environment, installing, signals, streams
from convexport.cli.completion import SHELLS, completion
from convexport.runtime.errors import ConvexportError, UsageError
from convexport.runtime.text import printable

_COLORS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
# What shells give for a command that wrote to a pipe without a reader (SIGPIPE).
NO_READER = 141


class _Voice:
    """Whether remarks are wanted. One for the process, like stderr."""

    quiet = False


def guard(program: str, command: Callable[[], int]) -> int:
    """Runs `command`; one of our errors becomes one line on stderr and its documented exit code."""
    streams.prepare()
    _Voice.quiet = False
    with signals.handled(program):
        try:
            return _run(program, command)
        except BaseException as error:  # whatever a signal became on its way here; all else is raised again
            number = signals.received()
            if number is None and isinstance(error, KeyboardInterrupt):
                number = signals.INTERRUPT
            if number is None or isinstance(error, SystemExit):
                raise
            # A library may have replaced the exception; the signal is the reason.
            known = isinstance(error, ConvexportError) and error.exit_code == signals.code(signals.INTERRUPT)
            streams.say(printable(f"{program}: {error if known else signals.WORDS[number]}"))
            streams.let_go_of_stdout()
            return signals.code(number)


def _run(program: str, command: Callable[[], int]) -> int:
    try:
        code = command()
        streams.flush_stdout()
        return code
    except ConvexportError as error:
        if signals.received() is not None:
            raise
        complain(f"{program}: {error}")
        streams.let_go_of_stdout()
        return error.exit_code
    except BrokenPipeError:
        # The reader of our results went away (`classify ... | head`): there is nobody to tell, and the work is
        # incomplete.
        streams.let_go_of_stdout()
        return NO_READER
    except SystemExit:  # of argparse, after a help text or an error
        streams.let_go_of_stdout()
        raise


def be_quiet() -> None:
    """From now on no remarks and no bar; errors are still shown."""
    _Voice.quiet = True


def complain(text: str) -> None:
    """Writes an error as one line to stderr, whatever names it contains, with install commands that work here."""
    streams.say(printable(installing.here(text)))


def remark(text: str) -> None:
    """Writes a remark to stderr, if remarks are wanted and can be written."""
    signals.check()
    if not _Voice.quiet:
        complain(text)


def result(text: str, color: str | None = None) -> None:
    """Writes a line to stdout, for a command whose result is a file: without a reader, the work continues."""
    line = printable(text)
    try:
        with streams.writing("standard output"):
            print(paint(line, color) if color else line, flush=True)
    except BrokenPipeError:
        streams.drop(sys.stdout)


def paint(text: str, color: str, stream: IO[str] | None = None) -> str:
    """`text` in `color` if `stream` (stdout) is a terminal and NO_COLOR is not set."""
    if not (stream or sys.stdout).isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns; a column whose cells are all numbers is aligned to the right."""
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


class _Version(argparse.Action):
    """Prints the version and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *words: Any) -> NoReturn:
        from convexport.runtime import __version__

        _end(f"{parser.prog} {__version__}\n")


class _Completion(argparse.Action):
    """Prints a shell's completion script and ends."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: Any = None) -> NoReturn:
        _end(f"{completion(parser, values)}\n")


class _Help(argparse.Action):
    """Prints the help and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *words: Any) -> NoReturn:
        _end(parser.format_help())


def _end(text: str) -> NoReturn:
    """Writes `text` to stdout, and ends the command."""
    with streams.writing("standard output"):  # at once, where Python does not buffer
        sys.stdout.write(text)
    streams.flush_stdout()
    raise SystemExit(0)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that suggest the nearest option or choice, and help with unchanged examples."""

    def __init__(self, program: str, description: str, examples: str) -> None:
        super().__init__(
            prog=program,
            description=description,
            epilog=f"examples:\n{examples.rstrip()}\n\nenvironment variables (an option wins over them):\n"
            + environment.listed(program),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        add = self.add_argument
        add("-h", "--help", action=_Help, nargs=0, help="show this help and end")
        add("--version", action=_Version, nargs=0, help="show the version and end")
        add("--quiet", action="store_true", help="show no remarks and no progress, only errors")
        shells = "|".join(SHELLS)
        add(
            "--print-completion", action=_Completion, metavar=shells, help="print a shell script that completes options"
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Like argparse's, but an unknown option comes with the nearest known one."""
        words = self._with_dashes(list(sys.argv[1:] if args is None else args))
        end = words.index("--") if "--" in words else len(words)
        # Intermixed: `classify a.png --top 3 b.png` names two files.
        found, rest = self.parse_known_intermixed_args(words[:end], namespace)
        # Intermixed parsing would treat words after `--` as options.
        literal, positional = words[end + 1 :], self._get_positional_actions()
        for names in positional:
            setattr(found, names.dest, [*getattr(found, names.dest), *literal])
        rest += [] if positional else literal
        unknown = next((word for word in rest if word.startswith("-")), rest[0] if rest else None)
        if unknown is not None:
            name = unknown.split("=")[0]
            from difflib import get_close_matches

            near = get_close_matches(name, self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            if os.path.lexists(unknown):
                hint = f"for the file of this name, write ./{unknown}"
            self.error(f"option {name} is not known; {hint}")
        if found.quiet:
            be_quiet()
        return found

    def _with_dashes(self, words: list[str]) -> list[str]:
        """The words, where a choice that begins with a dash is not taken for an option: `--pixels -1..1`."""
        joined: list[str] = []
        for word in words:
            option = self._option_string_actions.get(joined[-1]) if joined and "--" not in joined else None
            if word.startswith("-") and option is not None and word in (option.choices or ()):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return joined

    def error(self, message: str) -> NoReturn:
        """One line on stderr and exit code 2."""
        complain(f"{self.prog}: {message}")
        raise SystemExit(UsageError.exit_code)


@contextmanager
def bar(description: str, *, shown: bool = True) -> Iterator[Callable[[float | None, str], None]]:
    """A progress bar on stderr, if it is a terminal. Returns `update(share done, text after the bar)`.

    A share of None means that it is unknown.
    """
    if not (shown and bars_are_shown()):
        yield lambda share, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None, text="")

        def update(share: float | None, text: str) -> None:
            signals.check()
            progress.update(task, total=None if share is None else 1.0, completed=share, text=text)

        yield update


def bars_are_shown() -> bool:
    """Whether progress can be shown: stderr is a terminal and --quiet is not set."""
    return not _Voice.quiet and sys.stderr.isatty()


class Pace:
    """The state of a count: its speed, and the time left if the total is known."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self._started = time.monotonic()

    def share(self, done: int) -> float | None:
        """The share of the total that is done."""
        return done / self.total if self.total else None

    def text(self, done: int, seconds: float | None = None) -> str:
        """`1,200 of 10,000  2,000 images/s  0:00:04 left`. `seconds` is the time so far, else the clock's."""
        seconds = time.monotonic() - self._started if seconds is None else seconds
        rate = done / seconds if seconds > 0 else 0.0
        speed = f"{rate:,.0f} images/s"
        if not self.total:
            return f"{done:,}  {speed}"
        left = f"  {timedelta(seconds=round((self.total - done) / rate))} left" if rate else ""
        return f"{done:,} of {self.total:,}  {speed}{left}"
