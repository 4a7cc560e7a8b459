"""Versions of a JSON format: major.minor, and keys of a newer minor that are ignored and reported. No I/O here.

The rules, which docs/format.md explains: another major is refused; a newer minor is read; a key that is not
known is ignored and reported, whatever the minor; a key that is named twice is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from convexport.runtime.errors import ArtifactError, first_line

T = TypeVar("T")
Values = dict[str, Any]

# RecursionError: thousands of brackets. ValueError: bytes that are no UTF-8, numbers of thousands of digits.
_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
_NUMBER = re.compile(r"(\d{1,9})\.(\d{1,9})", re.ASCII)
_PATHS_LISTED = 10
_PATH_CHARACTERS = 80


@dataclass(frozen=True)
class Format(Generic[T]):
    """One format: the version that is written, and the conversion of every readable version to one struct.

    Args:
        name: Its name in errors: "manifest".
        version: The version that this program writes, "major.minor".
        kind: The struct that it is read into. A key that a minor version added has a default there.
        error: The class of the errors.
        again: How to make the file again, for the fix of an error: "export the bundle again".
        older: Frozen readers by major version: JSON of that version -> values of this one.
    """

    name: str
    version: str
    kind: type[T]
    error: type[ArtifactError]
    again: str
    older: Mapping[int, Callable[[bytes], Values]] = field(default_factory=dict)

    def decode(self, data: bytes, where: str) -> tuple[T, tuple[str, ...]]:
        """JSON -> the struct and remarks, one line each. `where` is the file's name in errors and remarks.

        Raises:
            ArtifactError: Of the format's class: not JSON of this kind, another major version, a repeated or missing
                key.
        """
        try:
            found = msgspec.json.decode(data, type=_Versioned).format
            major, _ = _parsed(found)
        except _UNREADABLE as error:
            raise self.error(f"{where}: not a convexport {self.name} ({first_line(error)})", self.again) from error
        self._refuse_another_major(found, where)
        try:
            values = json.loads(data.decode(), object_pairs_hook=_once)
            if major in self.older:
                return msgspec.convert(self.older[major](data), self.kind), ()
            struct = msgspec.json.decode(data, type=self.kind)
            unknown = list(dict.fromkeys(_unknown(values, inspect.type_info(self.kind), "$")))
        except _UNREADABLE as error:
            raise self.error(f"{where}: {first_line(error)}", self.again) from error
        return struct, (self._remark(found, unknown, where),) if unknown else ()

    def _refuse_another_major(self, found: int | str, where: str) -> None:
        major, own = _parsed(found)[0], _parsed(self.version)[0]
        if major != own and major not in self.older:
            known = ", ".join([*map(str, sorted(self.older)), self.version])
            fix = "update convexport" if major > own else self.again
            raise self.error(f"{where}: format {found}, but this convexport reads {known}", fix)

    def _remark(self, found: int | str, unknown: list[str], where: str) -> str:
        listed = ", ".join(unknown[:_PATHS_LISTED])
        more = f" and {len(unknown) - _PATHS_LISTED:,} more" if len(unknown) > _PATHS_LISTED else ""
        newer = _parsed(found) > _parsed(self.version)
        why = f"format {found} is newer than this convexport's {self.version}; " if newer else ""
        return f"{where}: {why}ignored unknown keys: {listed}{more}"


class _Versioned(msgspec.Struct):
    format: int | str  # before major.minor: one number


def _parsed(version: int | str) -> tuple[int, int]:
    if isinstance(version, int):
        return version, 0
    match = _NUMBER.fullmatch(version)
    if match is None:
        raise ValueError(f"format {version!r}, expected two numbers such as '3.0'")
    return int(match[1]), int(match[2])


def _once(pairs: list[tuple[str, Any]]) -> Values:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_shown(twice)} occurs twice")
    return values


def _unknown(value: Any, kind: inspect.Type, path: str) -> Iterator[str]:
    """The paths of keys in `value` that the type `kind` does not have; keys of a `dict` are data and always known."""
    if isinstance(kind, inspect.UnionType):
        for option in kind.types:
            yield from _unknown(value, option, path)
    elif isinstance(kind, inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        for key, inner in value.items():
            below = f"{path}.{_shown(key)}"
            yield from _unknown(inner, fields[key], below) if key in fields else (below,)
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        for inner in value.values():
            yield from _unknown(inner, kind.value_type, f"{path}.*")
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict | list):  # of thousands of numbers, none has a key
                yield from _unknown(inner, kind.item_type, f"{path}[*]")


def _shown(key: str) -> str:
    """A key from an untrusted file, safe for a terminal."""
    text = key if key.isidentifier() and key.isascii() else json.dumps(key)
    return text if len(text) <= _PATH_CHARACTERS else f"{text[:_PATH_CHARACTERS]}…"
