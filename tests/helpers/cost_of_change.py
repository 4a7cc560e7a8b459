"""What a change costs, counted in the tree: how many files and places name something that there is one more of then.

PYTHONPATH=tests python -m helpers.cost_of_change      every place that was counted

A probe is a name that is there today, of the kind of thing that a change adds. A place is a function or class whose
own code names the probe, as an identifier or a word of a string; what stands outside of them is one place for each
file. Docstrings and comments are no code. Modules and folders that bear the probe's name are its own: a change adds
them, and edits the other places.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.markdown_pages import ROOT

PORTIONS = ("training", "export", "runtime", "cli")
NEW_PRECISION = ROOT / "tests/export/test_a_new_precision.py"


@dataclass(frozen=True)
class Probe:
    """A name to look for: `pattern` fits identifiers and strings.

    `among` keeps to files that use that module, `apart` leaves out the files whose path it fits.
    """

    change: str
    name: str
    pattern: str
    target: str = ""
    among: str = ""
    apart: str = ""


@dataclass(frozen=True)
class Cost:
    """`own` files bear the probe's name; `edits` are (file, function or class) elsewhere."""

    own: tuple[str, ...]
    edits: tuple[tuple[str, str], ...]

    @property
    def edited(self) -> list[str]:
        """The files to edit."""
        return sorted({file for file, _ in self.edits})


def _word(name: str) -> str:
    """A word of text, or a part of an identifier as in `Int8Options` or `_int8`; `uint8` holds no `int8`."""
    spellings = "|".join((name, name.capitalize(), name.upper()))
    return rf"(?<![A-Za-z])({spellings})(?![a-z0-9])"


def _back_end(name: str, kind: str) -> Probe:
    pattern = rf"^{name}$|{kind}|backends\.{name}"
    return Probe("a back end", name, pattern, "1 new module, at most 3 places")


PROBES = (
    Probe("a precision", "int8", _word("int8"), "at most 3 files, new and edited"),
    _back_end("onnxruntime", "OnnxRuntime"),
    _back_end("openvino", "OpenV(INO|ino)"),
    Probe("a field of the records", "notes", "^notes$", among="convexport.runtime.records"),
    Probe("a key of the manifest", "golden_tolerance", "^golden_tolerance$"),
    Probe(
        "an option from the command to a back end",
        "threads",
        "^(--)?threads$",
        "at most 5 places",
        apart="backends/(openvino|tensorrt)",  # the way to one of them: onnxruntime
    ),
)


class _Places(ast.NodeVisitor):
    """The functions and classes of one file whose own code names the probe."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)
        self._within: list[str] = []
        self.found: set[str] = set()

    def _look(self, *names: str | None) -> None:
        if any(name and self._pattern.search(name) for name in names):
            self.found.add(".".join(self._within))

    def _enter(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self._look(node.name)
        self._within.append(node.name)
        self.generic_visit(node)
        self._within.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        self._look(node.value if isinstance(node.value, str) else None)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._look(node.module)
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(name=name):
                self._look(name)
            case ast.keyword(arg=name):
                self._look(name)
        super().generic_visit(node)


def _files() -> Iterator[tuple[str, ast.Module]]:
    for portion in PORTIONS:
        root = ROOT / portion / "convexport"
        for file in sorted(root.rglob("*.py")):
            yield file.relative_to(root).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def _uses(file: str, tree: ast.Module, module: str) -> bool:
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return module in imported or file == module.removeprefix("convexport.").replace(".", "/") + ".py"


def cost(probe: Probe) -> Cost:
    """Where the tree names a probe."""
    own: list[str] = []
    edits: list[tuple[str, str]] = []
    for file, tree in _files():
        if (probe.among and not _uses(file, tree, probe.among)) or (probe.apart and re.search(probe.apart, file)):
            continue
        if any(probe.name in Path(part).stem for part in Path(file).parts[1:]):
            own.append(file)
            continue
        places = _Places(probe.pattern)
        places.visit(tree)
        edits += [(file, place) for place in sorted(places.found)]
    return Cost(tuple(own), tuple(edits))


def added_by_a_test(file: Path) -> Cost:
    """The rows that a test adds to tables of the code, by `monkeypatch.setitem(TABLE, ...)`: one place for each."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    tables = {call.args[0].id for call in calls if call.func.attr == "setitem" and isinstance(call.args[0], ast.Name)}
    homes = {
        target.id: path
        for path, module in _files()
        for node in module.body
        for target in ([node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", []))
        if isinstance(target, ast.Name) and target.id in tables
    }
    return Cost((), tuple(sorted((homes[table], table) for table in tables)))


def cost_table() -> str:
    """The table for the page; a probe that the tree does not name yet is left out."""
    rows = ["| to add | as there is | new modules | files to edit | places to edit | wanted |"]
    rows.append("| --- | --- | ---: | ---: | ---: | --- |")
    costs = [(PROBES[0].change, "`wide`, in a test", added_by_a_test(NEW_PRECISION), PROBES[0].target)]
    costs += [(probe.change, f"`{probe.name}`", cost(probe), probe.target) for probe in PROBES]
    for change, name, found, target in costs:
        if found.edits:
            cells = (change, name, *map(str, (len(found.own), len(found.edited), len(found.edits))), target)
            rows.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(rows) + "\n"


def main() -> None:
    """Lists every place."""
    print(cost_table())
    for probe in PROBES:
        found = cost(probe)
        print(f"{probe.change}: {probe.name}")
        print("".join(f"    new   {file}\n" for file in found.own), end="")
        print("".join(f"    edit  {file}  {place or '(module)'}\n" for file, place in found.edits))


if __name__ == "__main__":
    main()
