"""The cache of built engines, and the rule that no unverified byte of a plan reaches TensorRT.

A plan is equivalent to native code: whoever can write one can run code in the process that loads it. So a plan is read
only as a `Plan`, which cannot exist unless the bytes have the SHA-256 that a verified manifest or a cache entry states.
A cache entry is as trustworthy as its folder: the folder must belong to this user or to root and be writable to nobody
else, and its entries likewise.

The cache is `$CONVEXPORT_CACHE`, else `$XDG_CACHE_HOME/convexport`, else `~/.cache/convexport`. An entry is two files
named after the digest of the engine's key: `<digest>.plan`, raw as NVIDIA's tools read it, and `<digest>.json` with
key, size and SHA-256. The JSON file is written last; a crash between the two leaves a pair that does not match and is
built again. `<digest>.lock` is locked with flock while a process builds, so that processes which start together build
once; the lock ends with its process, so nothing waits for a dead process. The file system must support flock.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from convexport.runtime import atomic
from convexport.runtime.backends.tensorrt.build import BuiltEngine
from convexport.runtime.errors import EngineError, first_line
from convexport.runtime.folders import cache_folder
from convexport.runtime.manifest import Engine, EngineKey, Sha256


@dataclass(frozen=True)
class Plan:
    """Bytes of an engine with the stated hash. `origin` says where hash and bytes come from.

    Raises `EngineError` when the bytes have another hash: a `Plan` is the only thing the back end loads.
    """

    data: bytes = field(repr=False)
    sha256: str
    key: EngineKey
    origin: str

    def __post_init__(self) -> None:
        found = hashlib.sha256(self.data).hexdigest()
        if found != self.sha256:
            raise EngineError(
                f"{self.origin}: the plan's SHA-256 is {found[:12]}…, expected {self.sha256[:12]}…", "build it again"
            )


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The JSON file of a cache entry."""

    key: EngineKey
    bytes: int
    sha256: Sha256
    layer_types: dict[str, dict[str, int]]
    build_seconds: float


def fits(found: EngineKey, wanted: EngineKey) -> bool:
    """Whether an engine fits: everything equal, every wanted target among its own, and a large enough batch."""
    return (
        (found.onnx_sha256, found.flavor, found.version, found.precision)
        == (wanted.onnx_sha256, wanted.flavor, wanted.version, wanted.precision)
        and set(wanted.compute_capabilities) <= set(found.compute_capabilities)
        and found.profiles[0][0] <= wanted.profiles[0][0]
        and found.profiles[-1][2] >= wanted.profiles[-1][2]
    )


def from_bundle(
    engines: tuple[Engine, ...], wanted: EngineKey, read: Callable[[str], tuple[bytes, str]]
) -> Plan | None:
    """The bundle's fitting engine. `read` returns verified bytes and the manifest's SHA-256 of a file of the bundle."""
    for engine in engines:
        if fits(engine.key, wanted):
            data, sha256 = read(engine.file)
            return Plan(data, sha256, engine.key, f"the bundle's {engine.file}")
    return None


class EngineCache:
    """Engines of this user on this machine. `waiting` is called once if another process is building the same engine."""

    def __init__(self, folder: Path | None = None, waiting: Callable[[str], None] | None = None) -> None:
        self.folder = (folder or cache_folder()) / "engines"
        self._waiting = waiting

    def get(self, key: EngineKey) -> Plan | None:
        """The plan for a key, or None if there is no complete one. Raises `EngineError` for an unsafe folder."""
        entry_file, plan_file = self._files(key)
        entry_bytes = _read_trusted(entry_file)
        plan = _read_trusted(plan_file)
        if entry_bytes is None or plan is None:
            return None
        try:
            entry = msgspec.json.decode(entry_bytes, type=Entry)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if entry.key != key or entry.bytes != len(plan) or hashlib.sha256(plan).hexdigest() != entry.sha256:
            return None
        return Plan(plan, entry.sha256, key, f"the cached engine {plan_file}")

    def get_or_build(self, key: EngineKey, build: Callable[[], BuiltEngine], *, not_sha256: str | None = None) -> Plan:
        """The cached plan, else a new one by `build`, which is stored. If several processes ask, one of them builds.

        `not_sha256` is the hash of a plan that could not be loaded and must be replaced; a plan that another process
        has stored meanwhile is used. Raises what `build` raises, and `EngineError` for a cache that cannot be used.
        """
        plan = self.get(key)
        if plan is not None and plan.sha256 != not_sha256:
            return plan
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._lock(key):
                plan = self.get(key)
                if plan is not None and plan.sha256 != not_sha256:
                    return plan
                built = build()
                if built.key != key:
                    raise EngineError(
                        f"the engine was built for {built.key}, but {key} was asked for", "report this as a bug"
                    )
                self._store(built)
        except OSError as error:
            raise EngineError(
                f"the engine cache {self.folder} cannot be used ({first_line(error)})",
                "set CONVEXPORT_CACHE to a folder of your own",
            ) from error
        return Plan(built.plan, built.sha256, key, f"the engine just built, {self._files(key)[1]}")

    def timing_cache(self, key: EngineKey) -> bytes:
        """The timings of earlier builds of this flavor, version and GPU; empty if there are none."""
        sealed = _read_trusted(self._timing_file(key)) or b""
        seal, data = sealed[:64], sealed[64:]
        return data if hashlib.sha256(data).hexdigest().encode() == seal else b""

    def _timing_file(self, key: EngineKey) -> Path:
        return self.folder / f"timing-{key.flavor}-{key.version}-{'-'.join(key.compute_capabilities)}.cache"

    def _files(self, key: EngineKey) -> tuple[Path, Path]:
        digest = hashlib.sha256(msgspec.json.encode(key, order="deterministic")).hexdigest()[:32]
        return self.folder / f"{digest}.json", self.folder / f"{digest}.plan"

    def _store(self, built: BuiltEngine) -> None:
        entry_file, plan_file = self._files(built.key)
        entry = Entry(
            key=built.key,
            bytes=len(built.plan),
            sha256=built.sha256,
            layer_types=built.layer_types,
            build_seconds=built.build_seconds,
        )
        _write(plan_file, built.plan)
        if built.timing_cache:
            seal = hashlib.sha256(built.timing_cache).hexdigest().encode()
            _write(self._timing_file(built.key), seal + built.timing_cache)
        _write(entry_file, msgspec.json.format(msgspec.json.encode(entry), indent=2) + b"\n")

    @contextmanager
    def _lock(self, key: EngineKey) -> Iterator[None]:
        """Held by the process that builds an engine; it ends with that process, so nothing waits for a dead one."""
        import fcntl  # Linux and macOS

        entry_file, _ = self._files(key)
        descriptor = os.open(entry_file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._waiting:
                    self._waiting("another process is building this engine; waiting for it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read_trusted(file: Path) -> bytes | None:
    """Bytes of a file of the cache; None where it is missing. Raises `EngineError` if other users could write it."""
    try:
        _check_owner(file.parent, file.parent.stat())
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise EngineError(
            f"{file}: cannot be read ({first_line(error)})", "remove it, or set CONVEXPORT_CACHE"
        ) from error
    with os.fdopen(descriptor, "rb") as stream:
        _check_owner(file, os.fstat(stream.fileno()))
        return stream.read()


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise EngineError(
            f"{path} belongs to user {status.st_uid}; an engine is code, so it is not loaded",
            "set CONVEXPORT_CACHE to a folder of your own",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EngineError(
            f"{path} can be written by other users; an engine is code, so it is not loaded", f"chmod go-w {path}"
        )


def _write(file: Path, data: bytes) -> None:
    # Processes that build different engines write one timing cache; a file that other users can write is not loaded.
    atomic.write(file, data, writer=secrets.token_hex(4), mode=0o600)
