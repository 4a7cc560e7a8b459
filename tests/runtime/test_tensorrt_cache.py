"""The engine cache with real files and real processes: one build, nothing unverified, nothing retried for ever."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from convexport.runtime.backends.tensorrt.build import BuiltEngine
from convexport.runtime.backends.tensorrt.cache import EngineCache, Plan, fits, from_bundle
from convexport.runtime.errors import EngineError, UnavailableError
from convexport.runtime.folders import cache_folder
from convexport.runtime.manifest import Engine, EngineKey

KEY = EngineKey(
    onnx_sha256="a" * 64,
    flavor="tensorrt_rtx",
    version="1.7.1.116",
    compute_capabilities=("8.9",),
    precision="fp16",
    profiles=((1, 1, 1), (2, 32, 32), (33, 256, 256)),
)


class Builder:
    """Builds a plan, another one each time, and counts."""

    def __init__(self, key: EngineKey = KEY, timing_cache: bytes = b"") -> None:
        self.key, self.builds, self.timing_cache = key, 0, timing_cache

    def __call__(self) -> BuiltEngine:
        self.builds += 1
        return BuiltEngine(b"plan number %d" % self.builds * 50, self.key, {}, 0.5, self.timing_cache)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path)


def files(cache: EngineCache) -> tuple[Path, Path]:
    (entry,) = cache.folder.glob("*.json")
    return entry, entry.with_suffix(".plan")


def test_an_engine_is_built_once_and_then_taken_from_the_cache(cache: EngineCache) -> None:
    build = Builder()
    assert cache.get(KEY) is None
    first = cache.get_or_build(KEY, build)
    second = cache.get_or_build(KEY, build)
    assert build.builds == 1
    assert first.data == second.data == b"plan number 1" * 50
    assert second.origin == f"the cached engine {files(cache)[1]}"
    assert files(cache)[1].read_bytes() == second.data  # raw
    entry = json.loads(files(cache)[0].read_bytes())
    assert entry["sha256"] == hashlib.sha256(second.data).hexdigest()
    assert entry["key"]["compute_capabilities"] == ["8.9"]


def test_an_engine_is_stored_for_its_owner_alone_whatever_the_umask(cache: EngineCache) -> None:
    before = os.umask(0)
    try:
        cache.get_or_build(KEY, Builder(timing_cache=b"times"))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in cache.folder.iterdir()} == {0o600}
    assert cache.get(KEY) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "b" * 64},
        {"flavor": "tensorrt"},
        {"version": "1.7.1.117"},
        {"compute_capabilities": ("8.6",)},
        {"precision": "fp32"},
        {"profiles": ((1, 1, 1), (2, 32, 32))},
    ],
)
def test_every_part_of_the_key_counts(cache: EngineCache, change: dict[str, object]) -> None:
    cache.get_or_build(KEY, Builder())
    other = msgspec.structs.replace(KEY, **change)
    assert cache.get(other) is None
    assert not fits(KEY, other) or "profiles" in change
    build = Builder(other)
    cache.get_or_build(other, build)
    assert build.builds == 1
    assert cache.get(KEY) is not None


def test_an_engine_fits_when_it_has_the_target_and_room_for_the_batch() -> None:
    wide = msgspec.structs.replace(KEY, compute_capabilities=("8.0", "8.6", "8.9"))
    assert fits(wide, KEY)
    assert not fits(KEY, wide)
    smaller = msgspec.structs.replace(KEY, profiles=((1, 1, 1), (2, 32, 32)))
    assert fits(KEY, smaller)
    assert not fits(smaller, KEY)
    assert not fits(msgspec.structs.replace(KEY, profiles=((8, 64, 256),)), KEY)


def damage_flip(entry: Path, plan: Path) -> None:
    data = bytearray(plan.read_bytes())
    data[100] ^= 1
    plan.write_bytes(data)


def damage_truncate(entry: Path, plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])


def damage_empty(entry: Path, plan: Path) -> None:
    plan.write_bytes(b"")


def damage_swap(entry: Path, plan: Path) -> None:
    plan.write_bytes(b"another engine's plan, whole in itself")


def damage_foreign_entry(entry: Path, plan: Path) -> None:
    """An entry that vouches for its plan, but belongs to another key."""
    content = json.loads(entry.read_bytes())
    content["key"]["onnx_sha256"] = "c" * 64
    entry.write_text(json.dumps(content))


def damage_entry(entry: Path, plan: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:40])


def damage_no_entry(entry: Path, plan: Path) -> None:
    entry.unlink()


def damage_no_plan(entry: Path, plan: Path) -> None:
    plan.unlink()


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_not_given_out_but_built_again_once(
    cache: EngineCache, damage: Callable[[Path, Path], None]
) -> None:
    build = Builder()
    cache.get_or_build(KEY, build)
    damage(*files(cache))
    assert cache.get(KEY) is None
    plan = cache.get_or_build(KEY, build)
    assert (build.builds, plan.data) == (2, b"plan number 2" * 50)
    assert cache.get_or_build(KEY, build).data == plan.data
    assert build.builds == 2


def test_a_plan_that_would_not_load_is_replaced_and_a_newer_one_is_taken(cache: EngineCache) -> None:
    build = Builder()
    first = cache.get_or_build(KEY, build)
    second = cache.get_or_build(KEY, build, not_sha256=first.sha256)
    assert build.builds == 2
    assert cache.get_or_build(KEY, build, not_sha256=first.sha256).data == second.data
    assert build.builds == 2


def test_no_plan_exists_with_bytes_of_another_hash() -> None:
    good = hashlib.sha256(b"good").hexdigest()
    assert Plan(b"good", good, KEY, "here").data == b"good"
    bad = hashlib.sha256(b"bad").hexdigest()
    with pytest.raises(EngineError) as caught:
        Plan(b"bad", good, KEY, "the bundle's engines/a.plan")
    assert str(caught.value) == (
        f"the bundle's engines/a.plan: the plan's SHA-256 is {bad[:12]}…, expected {good[:12]}…; build it again"
    )
    with pytest.raises(EngineError):
        replace(Plan(b"good", good, KEY, "here"), data=b"bad")


def test_the_bundles_engine_is_read_only_when_it_fits() -> None:
    data = b"a plan"
    sha256 = hashlib.sha256(data).hexdigest()
    read: list[str] = []

    def reader(name: str) -> tuple[bytes, str]:
        read.append(name)
        return data, sha256

    others = [msgspec.structs.replace(KEY, version="1.6"), KEY]
    engines = tuple(
        Engine(file=f"engines/{index}.plan", key=key, layer_types={}, build_seconds=1.0)
        for index, key in enumerate(others)
    )
    plan = from_bundle(engines, KEY, reader)
    assert plan is not None
    assert (plan.data, plan.origin, read) == (data, "the bundle's engines/1.plan", ["engines/1.plan"])
    assert from_bundle(engines[:1], KEY, reader) is None
    assert read == ["engines/1.plan"]


def test_the_timing_cache_is_handed_on_and_a_damaged_one_is_not(cache: EngineCache) -> None:
    assert cache.timing_cache(KEY) == b""
    cache.get_or_build(KEY, Builder(timing_cache=b"measured"))
    assert cache.timing_cache(KEY) == b"measured"
    assert cache.timing_cache(msgspec.structs.replace(KEY, version="2")) == b""
    (file,) = cache.folder.glob("timing-*")
    file.write_bytes(file.read_bytes() + b"!")
    assert cache.timing_cache(KEY) == b""


def test_a_build_that_fails_leaves_no_entry_and_the_next_one_tries_again(cache: EngineCache) -> None:
    def fail() -> BuiltEngine:
        raise EngineError("no")

    with pytest.raises(EngineError, match=r"^no$"):
        cache.get_or_build(KEY, fail)
    assert not list(cache.folder.glob("*.plan"))
    assert cache.get_or_build(KEY, Builder()).data == b"plan number 1" * 50


def test_files_others_could_have_written_are_not_loaded(cache: EngineCache) -> None:
    cache.get_or_build(KEY, Builder())
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    entry, plan = files(cache)
    for path in (cache.folder, entry, plan):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o077
        path.chmod(mode | 0o020)
        with pytest.raises(EngineError) as caught:
            cache.get(KEY)
        assert str(caught.value) == (
            f"{path} can be written by other users; an engine is code, so it is not loaded; chmod go-w {path}"
        )
        path.chmod(mode)
    assert cache.get(KEY) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user_are_not_loaded(cache: EngineCache) -> None:
    cache.get_or_build(KEY, Builder())
    _, plan = files(cache)
    os.chown(plan, 12345, -1)
    with pytest.raises(EngineError) as caught:
        cache.get(KEY)
    assert str(caught.value) == (
        f"{plan} belongs to user 12345; an engine is code, so it is not loaded; set CONVEXPORT_CACHE to a folder "
        "of your own"
    )


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(EngineError) as caught:
        EngineCache(tmp_path / "file").get_or_build(KEY, Builder())
    assert str(caught.value) == (
        f"the engine cache {tmp_path}/file/engines cannot be used (Not a directory); set CONVEXPORT_CACHE to a folder "
        "of your own"
    )


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVEXPORT_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "a"
    assert EngineCache().folder == tmp_path / "a" / "engines"
    monkeypatch.delenv("CONVEXPORT_CACHE")
    assert cache_folder() == tmp_path / "b" / "convexport"
    monkeypatch.setenv("HOME", str(tmp_path))
    for caches in ("", "relative/b"):  # the XDG specification ignores a relative one
        monkeypatch.setenv("XDG_CACHE_HOME", caches)
        assert cache_folder() == tmp_path / ".cache" / "convexport"


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONVEXPORT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # no user is known
    with pytest.raises(UnavailableError) as caught:
        cache_folder()
    why = "Could not determine home directory"
    assert str(caught.value) == f"there is no folder for a cache ({why}); set CONVEXPORT_CACHE to a folder of your own"


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_no_absolute_path_is_none(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    for name in ("CONVEXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UnavailableError) as caught:
        cache_folder()
    why = f"HOME is {home!r}, expected an absolute path"
    assert str(caught.value) == f"there is no folder for a cache ({why}); set CONVEXPORT_CACHE to a folder of your own"


CHILD = """
import os, sys
from pathlib import Path
import msgspec
from convexport.runtime.backends.tensorrt.cache import EngineCache
from convexport.runtime.backends.tensorrt.build import BuiltEngine
from convexport.runtime.manifest import EngineKey

folder, key, hang = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=EngineKey), sys.argv[3] == "hang"

def build():
    with open(folder / "builds", "a") as log:
        log.write(f"{os.getpid()}\\n")
    print("building", flush=True)
    if hang:
        sys.stdin.readline()
    return BuiltEngine(os.urandom(1 << 20), key, {}, 0.1)

def waiting(note):
    print(note, flush=True)

print("ready", flush=True)
sys.stdin.readline()
plan = EngineCache(folder, waiting).get_or_build(key, build)
print("plan", plan.sha256, flush=True)
"""


def child(folder: Path, mode: str = "build") -> subprocess.Popen[str]:
    key = msgspec.json.encode(KEY).decode()
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), key, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_of_sixteen_processes_at_once_one_builds_and_all_have_its_plan(tmp_path: Path) -> None:
    processes = [child(tmp_path) for _ in range(16)]
    for process in processes:
        tell(process)
    shown = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 16
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    plan = EngineCache(tmp_path).get(KEY)
    assert plan is not None
    assert shown == [f"plan {plan.sha256}"] * 16
    assert sorted(path.suffix for path in (tmp_path / "engines").iterdir()) == [".json", ".lock", ".plan"]


def test_when_the_building_process_is_killed_the_waiting_one_builds(tmp_path: Path) -> None:
    first, second = child(tmp_path, "hang"), child(tmp_path)
    assert first.stdout is not None
    assert second.stdout is not None
    tell(first)
    assert first.stdout.readline() == "building\n"
    tell(second)
    assert second.stdout.readline() == "another process is building this engine; waiting for it\n"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    shown = second.communicate()[0].splitlines()
    assert shown[0] == "building"
    plan = EngineCache(tmp_path).get(KEY)
    assert plan is not None
    assert shown[1] == f"plan {plan.sha256}"
