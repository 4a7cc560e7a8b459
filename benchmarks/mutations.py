"""Do the tests notice a fault? Random small faults are put into the code, one at a time, and the survivors are named.

python benchmarks/mutations.py --count 60 --seed 1                        runtime/ and export/
python benchmarks/mutations.py --count 8 --paths runtime/convexport/runtime/bundle.py --tests tests/runtime

A fault is a comparison that is another one, a constant that is another one, a boolean turned round, or a call left out.
It is put into a copy of the tree, where the fast tests run that concern the module, up to the first that fails: the
files under tests/ that are named after it, then those that import it, directly before by way of others, as many as
`--seconds` of processor time allow. A file that fails without any fault is left out, with a remark. A survivor is
either a gap in the tests or no fault at all: read it, and try it again with more seconds. Every outcome goes to a log,
and what the log holds is not tried again, as long as the module is the same.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PORTIONS = ("training", "export", "runtime", "cli")
COMPARISONS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "is not": "is", "is": "is not", "not in": "in", "in": "not in",
}  # fmt: skip
_COMPARISON = re.compile(r"<=|>=|==|!=|<|>|\bis\s+not\b|\bnot\s+in\b|\bis\b|\bin\b")
_BOOLEAN = re.compile(r"\band\b|\bor\b")
_PASSED = (0, 5)  # pytest's exit codes: all tests passed, or none was selected
_LONGEST = 600.0  # seconds until the tests of a file are stopped


@dataclass(frozen=True)
class Mutation:
    """One fault: the bytes from `start` to `end` of `file` become `after`."""

    file: str
    line: int
    kind: str
    before: str
    after: str
    start: int
    end: int
    sha256: str
    """Of the file without the fault."""


@dataclass(frozen=True)
class Outcome:
    """What became of a fault: `killed` by a failing test, `hung` until the tests were stopped, or `survived`.

    `tests` are the files that were run. `left_out` are those for which there was no time or, after a failing one, no
    need, and those that fail without any fault.
    """

    mutation: Mutation
    tests: tuple[str, ...]
    left_out: tuple[str, ...]
    fate: str
    seconds: float


class _Finder(ast.NodeVisitor):
    """Every fault that one file can have. Annotations, docstrings and the parts of f-strings are left alone."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.sha256 = hashlib.sha256(source).hexdigest()
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutation] = []

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr | ast.stmt) -> int:
        return self.starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)

    def _add(self, kind: str, start: int, end: int, after: str) -> None:
        line = self.source.count(b"\n", 0, start) + 1
        before = self.source[start:end].decode()
        self.found.append(Mutation(self.file, line, kind, before, after, start, end, self.sha256))

    def _between(self, kind: str, operands: list[ast.expr], tokens: re.Pattern[str], other: dict[str, str]) -> None:
        for left, right in pairwise(operands):
            gap = self._end(left)
            token = tokens.search(self.source[gap : self._start(right)].decode())
            if token is not None:
                after = other[" ".join(token[0].split())]
                self._add(kind, gap + token.start(), gap + token.end(), after)

    def visit_Compare(self, node: ast.Compare) -> None:
        self._between("comparison", [node.left, *node.comparators], _COMPARISON, COMPARISONS)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._between("boolean", node.values, _BOOLEAN, {"and": "or", "or": "and"})
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add("boolean", self._start(node), self._start(node.operand), "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        start, end = self._start(node), self._end(node)
        if isinstance(node.value, bool):
            self._add("boolean", start, end, str(not node.value))
        elif isinstance(node.value, int | float):
            self._add("constant", start, end, repr(node.value + 1))
        elif isinstance(node.value, str):
            self._add("constant", start, end, repr(f"{node.value}~"))

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._add("removed call", self._start(node), self._end(node), "pass")
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Before Python 3.12 its parts do not know where they stand."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        """An annotation."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)


def mutations(root: Path, paths: list[str]) -> list[Mutation]:
    """Every fault that the Python files under `paths` can have, each of which still compiles."""
    found: list[Mutation] = []
    for path in paths:
        for file in sorted((root / path).rglob("*.py")) if (root / path).is_dir() else [root / path]:
            source = file.read_bytes()
            finder = _Finder(file.relative_to(root).as_posix(), source)
            finder.visit(ast.parse(source))
            found += [one for one in finder.found if _compiles(mutated(source, one))]
    return found


def mutated(source: bytes, mutation: Mutation) -> bytes:
    """The file with the fault in it."""
    return source[: mutation.start] + mutation.after.encode() + source[mutation.end :]


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "mutated", "exec")
    except SyntaxError:
        return False
    return True


def chosen(candidates: list[Mutation], count: int, seed: int) -> list[Mutation]:
    """At random, the kinds as often as each other, as far as there are enough."""
    draw = random.Random(seed)
    kinds: dict[str, list[Mutation]] = {}
    for one in draw.sample(candidates, len(candidates)):
        kinds.setdefault(one.kind, []).append(one)
    turns: list[Mutation] = []
    while len(turns) < min(count, len(candidates)):
        turns += [waiting.pop() for _, waiting in sorted(kinds.items()) if waiting]
    return turns[:count]


def _module(path: Path) -> str:
    """`convexport/runtime/bundle.py` -> `convexport.runtime.bundle`."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def _imported(file: Path) -> set[str]:
    """Every name that a file imports, and what it is imported from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def tests_of(root: Path, file: str) -> tuple[str, ...]:
    """The test files of a module, nearest first: those named after it, then those that import it, in few steps first.

    Of several that are as near as each other, those of the module's own portion come first, then those that import
    less.
    """
    folders = [root / portion for portion in PORTIONS] + [root / "tests"]
    imports = {
        _module(path.relative_to(folder)): _imported(path)
        for folder in folders
        for path in folder.rglob("*.py")
        if not path.name.startswith("test_")
    }
    portion, _, path = file.partition("/")
    module = _module(Path(path))
    steps, reached = {module: 1}, [module]
    for name in reached:  # grows meanwhile
        for other, names in imports.items():
            if other not in steps and name in names:
                steps[other] = steps[name] + 1
                reached.append(other)
    name = module.rpartition(".")[2]
    order: list[tuple[int, bool, int, str]] = []
    for test in sorted((root / "tests").rglob("test_*.py")):
        place, names = test.relative_to(root), _imported(test)
        near = [steps[one] for one in names if one in steps]
        if re.fullmatch(rf"test_{name}(_\w+)?\.py", test.name):
            near.append(0)
        if near:
            order.append((min(near), portion not in place.parts, len(names), place.as_posix()))
    return tuple(test for *_, test in sorted(order))


class Copy:
    """A copy of the tree in which tests run. Bytecode is not kept: it goes by seconds, and faults come faster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listed = _git(REPOSITORY, "ls-files", "-co", "--exclude-standard").splitlines()
        for name in filter(None, listed):
            if (REPOSITORY / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, root / name)
        _git(root, "init", "--quiet")
        _git(root, "add", "--all")
        _git(root, "-c", "user.name=mutations", "-c", "user.email=none", "commit", "--quiet", "--message", "a copy")
        self.environment = {
            "CONVEXPORT_DATA": str(REPOSITORY / "data"),
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(root / portion) for portion in PORTIONS),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.healthy: dict[str, bool] = {}

    def test(self, test: str, limit: float) -> int | None:
        """pytest's exit code for a test file, up to the first failure; none if it was stopped after `limit` seconds."""
        options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, test]
        with subprocess.Popen(
            command, cwd=self.root, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                return process.wait(limit)
            except subprocess.TimeoutExpired:
                return None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def is_healthy(self, test: str) -> bool:
        """Whether a test file passes without any fault; a remark where it does not."""
        if test not in self.healthy:
            code = self.test(test, _LONGEST)
            self.healthy[test] = code in _PASSED
            if not self.healthy[test]:
                _remark(f"{test} fails without any fault (exit {code}) and is left out")
        return self.healthy[test]

    def outcome(self, mutation: Mutation, tests: tuple[str, ...], seconds: float) -> Outcome:
        """What the tests make of a fault: one file after the other, until one fails or the time is used up."""
        file = self.root / mutation.file
        source = file.read_bytes()
        taken: list[str] = []
        spent, fate = 0.0, "survived"
        for test in tests:
            if fate != "survived" or (taken and spent >= seconds):
                break
            before = _processor_time()
            file.write_bytes(mutated(source, mutation))
            try:
                code = self.test(test, _LONGEST)
            finally:
                file.write_bytes(source)
            spent += _processor_time() - before
            if code not in _PASSED and not self.is_healthy(test):
                continue
            taken.append(test)
            if code not in _PASSED:
                fate = "hung" if code is None else "killed"
        left_out = tuple(test for test in tests if test not in taken)
        return Outcome(mutation, tuple(taken), left_out, fate, spent)


def _processor_time() -> float:
    """Seconds of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def _remark(text: str) -> None:
    print(f"mutations: {text}", file=sys.stderr, flush=True)


def logged(log: Path) -> dict[Mutation, Outcome]:
    """The outcomes of earlier runs."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    found = {}
    for line in lines:
        values = json.loads(line)
        mutation = Mutation(**values["mutation"])
        tests, left_out = tuple(values["tests"]), tuple(values["left_out"])
        found[mutation] = Outcome(mutation, tests, left_out, values["fate"], values["seconds"])
    return found


def outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    """The faults that were asked for, one after the other; those in the log as they were."""
    picked = chosen(mutations(REPOSITORY, options.paths), options.count, options.seed)
    known = logged(options.log)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = Copy(Path(folder))
        for mutation in picked:
            if mutation in known:
                yield known[mutation]
                continue
            tests = tuple(options.tests or tests_of(REPOSITORY, mutation.file))
            found = copy.outcome(mutation, tests, options.seconds)
            with options.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(found)) + "\n")
            yield found


def line_of(outcome: Outcome) -> str:
    """One fault for people: fate, place, change."""
    one = outcome.mutation
    change = "left out" if one.kind == "removed call" else f"-> {one.after or 'nothing'}"
    return f"{outcome.fate:<8} {one.file}:{one.line}: {one.kind}: {' '.join(one.before.split())} {change}"


def main() -> int:
    """Prints the survivors, and writes every outcome to the log as a JSON line -> exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, metavar="N", help="faults to try (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (%(default)s)")
    parser.add_argument("--paths", nargs="+", default=["runtime", "export"], metavar="PATH", help="files or folders")
    parser.add_argument(
        "--tests", nargs="+", metavar="PATH", help="tests for every fault; default: those of its module"
    )
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="of tests for each fault (%(default)s)")
    parser.add_argument("--log", type=Path, default=REPOSITORY / "build/mutations.jsonl", metavar="FILE")
    options = parser.parse_args()
    found: list[Outcome] = []
    for outcome in outcomes(options):
        found.append(outcome)
        print(f"{len(found):>3} {line_of(outcome)}  ({outcome.seconds:.0f} s)", file=sys.stderr, flush=True)
    counts = Counter(outcome.fate for outcome in found)
    print(f"{len(found)} faults, seed {options.seed}: {', '.join(f'{counts[fate]} {fate}' for fate in sorted(counts))}")
    for outcome in found:
        if outcome.fate == "survived":
            rest = f"  (not tried: {', '.join(outcome.left_out)})" if outcome.left_out else ""
            print(f"{line_of(outcome)}{rest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
