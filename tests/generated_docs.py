"""What is made from the code: parts of the pages, between `<!-- generated: NAME -->` and `<!-- end -->`, and a schema.

python tests/generated_docs.py      writes them anew; test_docs.py holds the pages against them
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from convexport.cli import classify, convexport, convtrain
from convexport.runtime import errors
from convexport.runtime.manifest import FORMAT, Manifest
from helpers.api_page import public_names
from helpers.cost_of_change import cost_table
from helpers.markdown_pages import ROOT

PORTIONS = ("training", "export", "runtime", "cli")
COLUMNS = "100"
SCHEMA = ROOT / "runtime/convexport/runtime/bundle.schema.json"
_PART = re.compile(r"(?<=<!-- generated: )([^\n]+)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)


def modules() -> dict[str, str]:
    """Every module by its path within the house (`runtime/backends/base.py`), and the first words of its docstring.

    An `__init__.py` that holds no more than its docstring is none.
    """
    found = {}
    for portion in PORTIONS:
        root = ROOT / portion / "convexport"
        for file in sorted(root.rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            if len(tree.body) > 1:
                words = (ast.get_docstring(tree) or "").split("\n\n")[0]
                found[file.relative_to(root).as_posix()] = " ".join(words.split())
    return found


def error_tree() -> str:
    """The tree as the docstring of runtime/errors.py draws it."""
    tree = (errors.__doc__ or "").split("\n\n")[1]
    return "\n".join(line[4:] for line in tree.splitlines())


def gate_limits() -> str:
    """The table of the gate's limits."""
    from convexport.export.precisions import EXPORTS

    header = (
        "precision",
        "accuracy lost",
        "decided differently",
        "max |Δp|",
        "mean |Δp|",
        "neighbors",
        "golden images, at least",
    )
    rows = [f"| {' | '.join(header)} |".replace("|Δp|", r"\|Δp\|"), "| --- |" + " ---: |" * (len(header) - 1)]
    for precision, row in EXPORTS.items():
        limit = row.limits
        differences = (limit.max_difference, limit.mean_difference, limit.rows, limit.golden_floor)
        cells = [
            f"{limit.accuracy_loss:.1%}",
            "" if limit.disagreement is None else f"{limit.disagreement:.1%}",
            *(f"{value:g}" for value in differences),
        ]
        rows.append(f"| {precision} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _module_table() -> str:
    rows = [f"| {path} | {words} |" for path, words in modules().items()]
    return "\n".join(["| module | holds |", "| --- | --- |", *rows]) + "\n"


def _help(command: Callable[[], object]) -> Callable[[], str]:
    def text() -> str:
        before = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = COLUMNS  # argparse breaks its lines by it
        try:
            return _block(command().format_help())  # type: ignore[attr-defined]
        finally:
            os.environ.pop("COLUMNS")
            if before is not None:
                os.environ["COLUMNS"] = before

    return text


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


PARTS: dict[str, Callable[[], str]] = {
    "modules": _module_table,
    "public names": public_names,
    "errors": lambda: _block(error_tree()),
    "limits": gate_limits,
    "cost of change": cost_table,
    "convtrain --help": _help(convtrain.parser),
    "convexport --help": _help(convexport.parser),
    "classify --help": _help(classify.parser),
}


def parts(text: str) -> dict[str, str]:
    """The generated parts that a page holds now."""
    return {match[1]: match[3] for match in _PART.finditer(text)}


def renewed(text: str) -> str:
    """A page with its generated parts made anew."""
    return _PART.sub(lambda match: f"{match[1]}{match[2]}{PARTS[match[1]]()}", text)


def schema() -> bytes:
    """The JSON Schema of `bundle.json`, from the types."""
    found = msgspec.json.schema(Manifest)
    for part in found["$defs"].values():
        if "description" in part:
            part["description"] = inspect.cleandoc(part["description"])
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"convexport's bundle.json, {FORMAT}"}
    return (json.dumps({**head, **found}, indent=2, ensure_ascii=False) + "\n").encode()


def main(pages: list[Path]) -> None:
    """Writes the pages whose generated parts have changed, and says which."""
    for page in pages:
        old = page.read_text(encoding="utf-8")
        new = renewed(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    SCHEMA.write_bytes(schema())
    main(sorted((ROOT / "docs").glob("*.md")))
