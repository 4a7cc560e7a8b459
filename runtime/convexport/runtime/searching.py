"""Names of files, folders and globs -> names of files, in order. What is left out is counted and named."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import overload

from convexport.runtime.encoded import HEAD, kind_of, unread
from convexport.runtime.errors import first_line
from convexport.runtime.inputs import KINDS, OPEN_FLAGS, Pause, failure_of
from convexport.runtime.records import Failure
from convexport.runtime.text import counted

__all__ = ["find_images"]

# Suffixes of images, each with the kind that it stands for; `None` for formats that are never read.
_SUFFIXES = (
    dict.fromkeys((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"), "read")
    | {".avif": "Avif", ".heic": "Heif", ".heif": "Heif"}
    | dict.fromkeys((".jxl", ".jp2", ".j2k", ".svg", ".psd", ".ico", ".tga", ".exr", ".hdr", ".jxr", ".dcm"))
    | dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".ppm", ".pgm", ".pbm", ".pcx"))
)
_NAMED = 3
_RECURSIVE = re.compile(r"(?<![^/])\*\*(?:/|$)")

LeftOut = dict[str, list[str]]
"""Names of images that were left out, by the reason."""


@overload
def find_images(
    inputs: Iterable[str | os.PathLike[str]], note: Callable[[str], None] | None = None
) -> Iterator[str | Failure]: ...


@overload
def find_images(
    inputs: Iterable[str | os.PathLike[str] | Pause], note: Callable[[str], None] | None = None
) -> Iterator[str | Failure | Pause]: ...


def find_images(
    inputs: Iterable[str | os.PathLike[str] | Pause], note: Callable[[str], None] | None = None
) -> Iterator[str | Failure | Pause]:
    """Names of files, folders and globs -> names of files, in order. Folders recursively, sorted, without hidden files.

        records = classifier.classify(find_images(["photos/", "scans/*.tif"]))

    A name without files keeps its place: a missing file is yielded and fails when it is read; an empty folder or a glob
    without a match is yielded as a `Failure`. A folder that links lead to is searched once.

    Args:
        inputs: Names of files, folders, and globs. A `Pause` among them passes through.
        note: Receives one remark at the end if images in folders were left out: how many, why, and which.

    Returns:
        Names of files, and failures, for `Classifier.classify`.
    """
    left_out: LeftOut = {}
    yield from _find(inputs, left_out)
    if left_out and note is not None:
        count = sum(map(len, left_out.values()))
        reasons = "; ".join(f"{reason}: {_some(names)}" for reason, names in left_out.items())
        note(f"{counted(count, 'image')} {'was' if count == 1 else 'were'} left out. {reasons}")


def _find(inputs: Iterable[str | os.PathLike[str] | Pause], left_out: LeftOut) -> Iterator[str | Failure | Pause]:
    for entry in inputs:
        if isinstance(entry, Pause):
            yield entry
            continue
        name = os.fspath(entry)
        if os.path.isdir(name):  # noqa: PTH112 - a Path would change the names that records repeat
            yield from _folder(name, left_out)
        elif glob.has_magic(name) and not os.path.lexists(name):
            # A glob gets here if it was quoted, had no match in the shell, or on Windows.
            matches = _expand(name)
            found = (
                _folder(match, left_out) if os.path.isdir(match) else (match,)  # noqa: PTH112
                for match in matches
            )
            yield from dict.fromkeys(chain.from_iterable(found))  # once: `**/*` matches a folder and its files
            if not matches:
                yield failure_of(name, "missing", "no file matches")
        else:
            yield name


def _folder(folder: str, left_out: LeftOut) -> Iterator[str | Failure]:
    empty = True
    for found in _walk(folder, left_out):
        empty = False
        yield found
    if empty:
        yield failure_of(folder, "empty", f"no {KINDS} file in this folder")


def _some(names: list[str]) -> str:
    return f"{len(names):,} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"


def _walk(folder: str, left_out: LeftOut) -> Iterator[str | Failure]:
    for found in _tree(folder, left_out):
        if isinstance(found, Failure):
            yield found
        elif not found[1]:
            reason = _why_not(found[0])
            if reason is None:
                yield found[0]
            elif reason:
                left_out.setdefault(reason, []).append(found[0])


def _why_not(path: str) -> str | None:
    """Why a file is not read: `None` for one that is, an empty string for what is no image."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - as in the whole module: names stay as they were given
    if not suffix:
        return None if _begins_as_image(path) else ""
    if suffix not in _SUFFIXES:
        return ""
    kind = _SUFFIXES[suffix]
    if kind is None:
        return f"only {KINDS} files are read"
    missing = None if kind == "read" else unread(kind)
    return missing and f"{missing[0]} ({missing[1]})"


def _begins_as_image(path: str) -> bool:
    try:
        descriptor = os.open(path, OPEN_FLAGS)
    except OSError:
        return False
    try:
        return kind_of(os.read(descriptor, HEAD)) is not None
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _hidden(entry: os.DirEntry[str], left_out: LeftOut) -> None:
    """Counts a hidden image, and those directly in a hidden folder. macOS's `._NAME` is no image."""
    if entry.name.startswith("._"):
        return
    names = [entry.path]
    if entry.is_dir():
        try:
            names = sorted(os.path.join(entry.path, name) for name in os.listdir(entry.path))  # noqa: PTH118, PTH208
        except OSError:
            return
    images = [name for name in names if os.path.splitext(name)[1].lower() in _SUFFIXES]  # noqa: PTH122
    if images:
        left_out.setdefault("hidden", []).extend(images)


def _tree(folder: str, left_out: LeftOut | None = None) -> Iterator[tuple[str, bool] | Failure]:
    """The folder and everything in it that is not hidden, at any depth: (path, whether it is a folder).

    A linked folder is entered only once, because it may lead back here.
    """
    waiting, entered = [(folder, True)], set[tuple[int, int]]()
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield path, False
            continue
        try:
            facts = os.stat(path)  # noqa: PTH116
            if (facts.st_dev, facts.st_ino) in entered:
                continue
            entered.add((facts.st_dev, facts.st_ino))
            yield path, True
            with os.scandir(path) as entries:
                everything = sorted(entries, key=lambda entry: entry.name)
            children = [child for child in everything if not child.name.startswith(".")]
            if left_out is not None:
                for child in everything:
                    if child.name.startswith("."):
                        _hidden(child, left_out)
            # Linked folders last: files that are reachable without a link keep their plain names.
            waiting[:0] = [(child.path, True) for child in reversed(children) if child.is_symlink() and child.is_dir()]
            waiting += [
                (child.path, child.is_dir())
                for child in reversed(children)
                if not (child.is_symlink() and child.is_dir())
            ]
        except OSError as error:
            yield failure_of(path, "unreadable", f"the folder cannot be read ({first_line(error)})")


def _expand(pattern: str) -> list[str]:
    """The matches of a glob, sorted. Unlike Python's, `**` does not enter linked folders, which may lead back."""
    recursive = _RECURSIVE.search(pattern)
    matches: set[str] = set()
    try:
        if recursive is None:
            return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        head, tail = pattern[: recursive.start()], pattern[recursive.end() :] or "*"
        for root in glob.glob(head) if glob.has_magic(head) else [head]:  # noqa: PTH207
            folders = [found[0] for found in _tree(root or ".") if not isinstance(found, Failure) and found[1]]
            for folder in folders:
                inside = os.path.join(folder, "")  # noqa: PTH118
                matches.update(_expand(glob.escape(inside if root else inside[2:]) + tail))
    except ValueError:  # a NUL in the name
        return []
    return sorted(matches)
