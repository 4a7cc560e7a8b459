"""This machine's processor without some of its abilities: copies of the libraries that ask for them, and a liar.

A library asks the processor with the instruction `cpuid`, which no user program can redirect. So in copies of numpy,
ONNX Runtime and OpenVINO each `cpuid` is replaced by an illegal instruction of the same length, and `hidden.c`,
loaded before them, answers in its place. Everything else runs on the processor itself, at its speed: what a Skylake-X
or a Haswell would choose is computed by real AVX-512 or AVX2 instructions. qemu has no AVX-512 to emulate.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from emulated import REPOSITORY, Machine, once

from convexport.runtime.errors import UnavailableError

CPUID, ILLEGAL = b"\x0f\xa2", b"\x06\xa2"
PACKAGES = ("numpy", "numpy.libs", "onnxruntime", "openvino")
ASKING = ("_multiarray_umath.*.so", "onnxruntime_pybind11_state*.so", "libopenvino.so*", "libopenvino_intel_cpu*.so")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LOADED = 1


def hidden(work: Path, abilities: str, name: str) -> Machine:
    """This machine without "vnni" (what a Skylake-X has is left) or "avx512" (what a Haswell has is left).

    Raises `UnavailableError` where a tool is missing or this processor has no AVX-512.
    """
    for tool in ("gcc", "objdump"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"{tool} is not installed", "apt-get install gcc binutils")
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        raise UnavailableError("this processor has no AVX-512, so it cannot be hidden", "take --machines qemu")
    site = once(work / "hidden", _copy)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(site / "hidden.so"),
        "HIDE": abilities,
        "PYTHONPATH": os.pathsep.join(map(str, (site, REPOSITORY / "runtime", REPOSITORY / "cli"))),
    }
    return Machine(name, (sys.executable,), environment)


def _copy(folder: Path) -> None:
    """Copies of the packages in which nothing asks the processor itself."""
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None
    assert numpy.origin is not None
    site = Path(numpy.origin).parents[1]
    unused = shutil.ignore_patterns("__pycache__", "tests", "*_gpu_plugin*", "*_npu_*", "tools", "quantization")
    for package in PACKAGES:
        if (site / package).is_dir():
            shutil.copytree(site / package, folder / package, symlinks=True, ignore=unused)
    changed = {file.name: replace_cpuid(file) for pattern in ASKING for file in sorted(folder.rglob(pattern))}
    if not all(changed.values()):
        raise UnavailableError(f"no cpuid was found in {', '.join(name for name in changed if not changed[name])}")
    command = [
        "gcc",
        "-O1",
        "-shared",
        "-fPIC",
        "-o",
        str(folder / "hidden.so"),
        str(Path(__file__).parent / "hidden.c"),
    ]
    subprocess.run(command, check=True)


def replace_cpuid(library: Path) -> int:
    """Replaces each `cpuid` of a library -> how many there were."""
    listed = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(library)], capture_output=True, text=True)
    addresses = [int(found, 16) for found in re.findall(r"^ *([0-9a-f]+):\tcpuid", listed.stdout, re.MULTILINE)]
    data = bytearray(library.read_bytes())
    segments = _segments(data)
    for address in addresses:
        start = next(address - virtual + offset for virtual, offset, size in segments if 0 <= address - virtual < size)
        assert data[start : start + 2] == CPUID
        data[start : start + 2] = ILLEGAL
    library.unlink()
    library.write_bytes(data)
    return len(addresses)


def _segments(data: bytearray) -> list[tuple[int, int, int]]:
    """What an ELF file of 64 bits loads: (virtual address, offset in the file, bytes)."""
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [_SEGMENT.unpack_from(data, table + number * size) for number in range(count)]
    return [(virtual, offset, length) for kind, _, offset, virtual, _, length, _, _ in headers if kind == _LOADED]
