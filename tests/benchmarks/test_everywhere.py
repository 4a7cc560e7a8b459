"""What `make everywhere` relies on: abilities of this processor are hidden, and its page says what differs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import everywhere
    import hidden
    from everywhere import Row
finally:
    sys.path.remove(str(BENCHMARKS))

ASKS = r"""
#include <cpuid.h>
#include <stdio.h>
int main(void) {
    unsigned a, b, c, d;
    __cpuid_count(7, 0, a, b, c, d);
    printf("%u %u %u", b >> 5 & 1, b >> 16 & 1, c >> 11 & 1); /* AVX2, AVX-512 F, VNNI */
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that asks the processor, changed so that `hidden.c` answers."""
    if shutil.which("gcc") is None or shutil.which("objdump") is None:
        pytest.skip("needs gcc and objdump on PATH")
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs a processor with AVX-512")
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "asks.c").write_text(ASKS)
    subprocess.run(["gcc", "-o", folder / "asks", folder / "asks.c"], check=True)
    source = Path(hidden.__file__).with_name("hidden.c")
    subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", folder / "hidden.so", source], check=True)
    assert hidden.replace_cpuid(folder / "asks") >= 1
    (folder / "asks").chmod(0o755)
    return folder / "asks"


@pytest.mark.parametrize(("abilities", "left"), [("vnni", "1 1 0"), ("avx512", "1 0 0")])
def test_a_library_is_told_that_an_ability_is_not_there(program: Path, abilities: str, left: str) -> None:
    environment = {"LD_PRELOAD": str(program.with_name("hidden.so")), "HIDE": abilities}
    done = subprocess.run([program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, left)


SAME = Row(
    place="Zen",
    network="lenet5-mnist",
    backend="openvino",
    precision="int8",
    images=10,
    equal=10,
    golden=64,
    against="x86_64 avx2",
)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (SAME, False),
        (msgspec.structs.replace(SAME, equal=9), True),
        (msgspec.structs.replace(SAME, difference=2e-3), True),
        (msgspec.structs.replace(SAME, golden_used=1.1), True),
        (msgspec.structs.replace(SAME, precision="fp16", difference=9e-3, tolerance=0.01), False),
        (msgspec.structs.replace(SAME, precision="fp16", difference=11e-3, tolerance=0.01), True),
        (msgspec.structs.replace(SAME, precision="fp32", difference=9e-3, tolerance=0.01), True),
        (msgspec.structs.replace(SAME, failed="crashed"), True),
        (msgspec.structs.replace(SAME, backend="auto", precision="auto", difference=0.5), False),
    ],
)
def test_another_label_a_large_difference_and_a_failed_self_test_are_beyond_what_is_promised(
    row: Row, expected: bool
) -> None:
    assert everywhere.beyond(row) is expected


def test_the_page_names_what_differs() -> None:
    rows = [SAME, msgspec.structs.replace(SAME, precision="fp16", equal=9)]
    page = everywhere.page(rows)
    assert "| Zen | x86_64 avx2 | lenet5-mnist | int8 | openvino | 10 of 10 | 0.0e+00 | 0.001 | 64, 0% |" in page
    assert "These rows are beyond the limit, or have another label: lenet5-mnist in fp16 by openvino on Zen." in page
