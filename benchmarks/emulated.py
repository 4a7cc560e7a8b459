"""An emulated aarch64 machine: an arm64 Debian, aarch64 wheels of what a device installs, and this tree's runtime.

qemu's user mode runs a program of another processor as a process of this machine. debootstrap downloads the Debian and
its packages are merely unpacked, so neither root nor a chroot is needed. Everything is made once and kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convexport.cli import terminal
from convexport.runtime.errors import GateRefused, UnavailableError

REPOSITORY = Path(__file__).resolve().parent.parent
SUITE, PACKAGES = "bookworm", "python3,libstdc++6"
# Every version is named, so that each run compares the same thing. onnxruntime 1.28 and later crash at import here.
WHEELS = (
    *("onnxruntime==1.26.0", "numpy==2.4.6", "pillow==13.0.0", "msgspec==0.22.0"),
    *("flatbuffers==25.12.19", "packaging==26.3", "protobuf==7.36.2"),
)
GLIBCS = ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")
# The nearest to a Jetson Orin's Cortex-A78AE that qemu 7.2 has: Armv8.2 with half precision and dot products as well.
EMULATOR = next(filter(shutil.which, ("qemu-aarch64-static", "qemu-aarch64")), "qemu-aarch64-static")
PROCESSOR = "cortex-a76"
TOOLS = {"debootstrap": "debootstrap", "dpkg-deb": "dpkg", EMULATOR: "qemu-user-static"}
STEP_SECONDS = 3600


@dataclass(frozen=True)
class Machine:
    """Where Python programs run: this machine, or the emulated one."""

    name: str
    python: tuple[str, ...]
    environment: dict[str, str]

    def run(self, program: str, *arguments: str, stdin: str = "") -> tuple[str, float]:
        """A program's text and its arguments -> (its standard output, seconds).

        Raises `GateRefused` where `classify` found a difference, `UnavailableError` on every other failure.
        """
        start = time.perf_counter()
        command = [*self.python, "-sP", "-c", program, *arguments]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, env=self.environment, timeout=STEP_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"{self.name}: no end after {STEP_SECONDS} s; take fewer --images") from error
        if done.returncode:
            reason = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            if done.returncode == GateRefused.exit_code:
                raise GateRefused(f"{self.name}: {reason}")
            raise UnavailableError(f"{self.name}: {_ending(done.returncode)}: {reason}")
        return done.stdout, time.perf_counter() - start


def emulated(work: Path) -> Machine:
    """The emulated machine, made where it is not there yet. Raises `UnavailableError`."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        command = f"apt-get install --no-install-recommends {' '.join(missing)}"
        raise UnavailableError(f"not installed: {', '.join(missing)}; {command}")
    root = once(work / f"root-{SUITE}-{_digest(PACKAGES)}", lambda folder: _unpack_debian(work / "debian", folder))
    site = once(work / f"site-{_digest(*WHEELS)}", _install_wheels)
    environment = {
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(map(str, (site, REPOSITORY / "runtime", REPOSITORY / "cli"))),
        "PYTHONPYCACHEPREFIX": str(work / "pycache"),
    }
    python = (EMULATOR, "-L", str(root), "-cpu", PROCESSOR, str(root / "usr/bin/python3.11"))
    return Machine("under emulation", python, environment)


def _unpack_debian(download: Path, folder: Path) -> None:
    """An arm64 Debian without its second stage: no script of it ever runs, so neither root nor a chroot is needed."""
    say(f"downloading an arm64 Debian {SUITE} (85 MB)")
    download.mkdir(parents=True, exist_ok=True)
    options = ("--download-only", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}")
    _tool("debootstrap", *options, SUITE, str(download), *_mirror())
    packages = sorted((download / "var/cache/apt/archives").glob("*.deb"))
    say(f"unpacking its {len(packages)} packages")
    for package in packages:
        _tool("dpkg-deb", "--extract", str(package), str(folder))


def _install_wheels(folder: Path) -> None:
    say(f"downloading aarch64 wheels: {', '.join(WHEELS)}")
    platforms = [option for glibc in GLIBCS for option in ("--platform", f"{glibc}_aarch64")]
    python = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none")
    options = ("--quiet", "--no-compile", "--only-binary=:all:", "--target", str(folder))
    _tool(sys.executable, "-m", "pip", "install", *options, *python, *platforms, *WHEELS)


def _mirror() -> tuple[str, ...]:
    """The mirror that this machine's apt has for the suite, if any; without it debootstrap takes its own default."""
    if shutil.which("apt-get") is None:
        return ()
    wanted = ("Created-By: Packages", "Origin: Debian", f"Codename: {SUITE}", "Component: main")
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted], capture_output=True, text=True
    )
    return tuple(line for line in listed.stdout.splitlines() if line.startswith("http"))[:1]


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` where it is not there: beside its place, then renamed, so it is whole or not there."""
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        make(part)
        part.rename(folder)
    return folder


def _tool(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        reason = (done.stdout.strip() or "it said nothing").splitlines()[-1]
        name = "pip" if "pip" in command else command[0]
        raise UnavailableError(f"{name}: {_ending(done.returncode)}: {reason}; run again: what is done is kept")


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]


def say(text: str) -> None:
    """A line on stderr about what is being done."""
    terminal.remark(f"aarch64: {text}")
