"""Two `convtrain`, and two `convexport`, started at once into one folder: is anything lost, and what is said?

python benchmarks/at_once.py --rounds 20

Both programs of a pair have the same process number, as in two containers that share a volume: where the system lets
us, each is the first process of a PID namespace of its own. They are forked from one process that has imported
everything, so that they meet at nearly the same instant. A round is right if at least one of the two ends well, nothing
fails but with the one line that names the other run, what was written is whole, and nothing else is left.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from convexport.cli import convexport, convtrain
from convexport.export import pipeline  # noqa: F401 - imported once, before the forks
from convexport.runtime.bundle import open_bundle
from convexport.runtime.errors import ConvexportError
from convexport.training import checkpoint, loop  # noqa: F401

CLONE_NEWPID = 0x20000000
DIGITS = ("--model", "lenet5", "--dataset", "digits")
EXPORT = ("--verify-images", "50", "--no-tensorrt")
WAIT = "wait until it has ended, or choose another folder with --out"
WORDS = {
    "convtrain": f"convtrain: checkpoint runs/lenet5-digits.safetensors is being trained by another run; {WAIT}",
    "convexport": f"convexport: bundles/lenet5-digits-fp32 is being written by another export; {WAIT}",
}


def in_a_namespace() -> bool:
    """Makes the next child of this process the first process of a PID namespace; false where that is not allowed."""
    return ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWPID) == 0


def pair(program: Callable[[list[str]], int], words: list[str], folder: Path) -> list[tuple[int, str]]:
    """Two of the same program at once -> exit code and the last line on stderr of each."""
    said = [folder / "first.txt", folder / "second.txt"]
    started = [_forked(lambda place=place: _alone(program, words, folder, place)) for place in said]
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
    return [(code, place.read_text().strip().rpartition("\n")[2]) for code, place in zip(codes, said, strict=True)]


def _forked(work: Callable[[], int]) -> int:
    """A child that does `work`, whose result is its exit code -> its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        code = work()
    finally:
        os._exit(code)


def _alone(program: Callable[[list[str]], int], words: list[str], folder: Path, said: Path) -> int:
    """Runs the program as the first process of a namespace, in `folder`, with its stderr in a file -> exit code."""
    in_a_namespace()

    def run() -> int:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        return program(words)

    return os.waitstatus_to_exitcode(os.waitpid(_forked(run), 0)[1])


def faults(program: str, folder: Path, ends: list[tuple[int, str]], wanted: set[str]) -> list[str]:
    """What is wrong after a round: how the two ended, and what lies in the folder."""
    found = []
    if all(code for code, _ in ends):
        found.append("neither of the two ended well")
    found += [f"exit {code}: {line}" for code, line in ends if code and (code, line) != (2, WORDS[program])]
    left = {path.name for path in folder.iterdir()}
    if left != wanted:
        found.append(f"there is {sorted(left)}, expected {sorted(wanted)}")
    try:
        if program == "convtrain":
            checkpoint.load(folder / "lenet5-digits.safetensors")
        else:
            with open_bundle(folder / "lenet5-digits-fp32") as bundle:
                bundle.verify()
    except ConvexportError as error:
        found.append(f"what was written is not whole: {error}")
    return found


def trained(folder: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """A round of `convtrain`: the ends of both, and what is wrong."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    ends = pair(convtrain.main, [*DIGITS, "--epochs", "2"], folder)
    names = {"lenet5-digits", "lenet5-digits.safetensors"}
    return ends, faults("convtrain", folder / "runs", ends, names)


def exported(folder: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """A round of `convexport`, with the last checkpoint: the ends of both, and what is wrong."""
    shutil.rmtree(folder / "bundles", ignore_errors=True)
    ends = pair(convexport.main, [*DIGITS, *EXPORT], folder)
    return ends, faults("convexport", folder / "bundles", ends, {"lenet5-digits-fp32"})


def main() -> int:
    """Plays the rounds; prints a line for each fault and one for each program -> 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="pairs of each program (%(default)s)")
    options = parser.parse_args()
    wrong = 0
    apart = _forked(lambda: int(not in_a_namespace()))
    allowed = os.waitpid(apart, 0)[1] == 0
    print("each in a PID namespace of its own" if allowed else "in one PID namespace, which is less than it should be")
    with tempfile.TemporaryDirectory() as name:
        for program, play in (("convtrain", trained), ("convexport", exported)):
            count: Counter[str] = Counter()
            for number in range(options.rounds):
                ends, found = play(Path(name))
                count[" and ".join(str(code) for code in sorted(code for code, _ in ends))] += 1
                for fault in found:
                    print(f"{program}, round {number + 1}: {fault}", flush=True)
                wrong += bool(found)
                print(f"{program}: {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            codes = ", ".join(f"{times} x exit codes {both}" for both, times in sorted(count.items()))
            print(f"{program}: {codes}", flush=True)
    print(f"{wrong} of {2 * options.rounds} rounds wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
