"""docs/api.md: what programs may rely on, from the docstrings of the public names."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from types import FunctionType

from convexport import runtime

GROUPS = {
    "Classifying": ("Classifier", "Options", "Source", "Given", "Progress", "Profile", "find_images"),
    "Records": ("Record", "Prediction", "Candidate", "Failure", "Problem", "to_table"),
    "Bundles": ("open_bundle", "Bundle", "GoldenResult"),
    "Back ends": ("Backend", "FakeBackend", "Device", "Images", "Probabilities"),
    "Errors": (
        *("ConvexportError", "UsageError", "InputError", "ArtifactError", "BundleError", "UnavailableError"),
        *("DeviceError", "BackendError", "EngineError", "GateRefused"),
    ),
    "Version": ("__version__",),
}
OPEN, CLOSE = "```python\n", "\n```"
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises):")
_TITLES = {"Args": "Arguments", "Attributes": "Attributes", "Returns": "Returns", "Raises": "Raises"}


def public_names() -> str:
    """A heading for each group and each name, with its signature and its docstring."""
    parts: list[str] = []
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts.append(f"### `{name}`\n")
            parts += _entry(name)
    return "\n" + "\n".join(parts) + "\n"


def _entry(name: str) -> Iterator[str]:
    if name == "__version__":
        yield "The version that is installed, as text.\n"
        return
    found = getattr(runtime, name)
    if not isinstance(found, type | FunctionType):
        yield f"{_alias_words(name)}\n"
        return
    is_error = isinstance(found, type) and issubclass(found, Exception)
    if is_error:
        base = found.__mro__[1].__name__
        code = "" if found.exit_code == 1 else f" The commands end with {found.exit_code}."
        yield f"A{'n' if base[0] in 'AEIOU' else ''} `{base}`.{code} {markdown(found)}".strip() + "\n"
        return
    yield f"```python\n{signature(name, found)}\n```\n"
    yield f"{markdown(found)}\n"
    if isinstance(found, type):
        for method, value in _members(found):
            plain = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            shown = f"{name}.{method}" if isinstance(value, property) else signature(f"{name}.{method}", plain)
            yield f"#### `{name}.{method}`\n"
            yield f"```python\n{shown}\n```\n"
            yield f"{markdown(plain)}\n"


def _members(kind: type) -> Iterator[tuple[str, object]]:
    """Methods and properties that the class itself documents, in their order."""
    for name, value in vars(kind).items():
        described = isinstance(value, FunctionType | property | classmethod)
        if described and not name.startswith("_") and inspect.getdoc(getattr(kind, name)):
            yield name, value


def signature(name: str, found: object) -> str:
    """The call as a reader would write it, one argument a line where it is long."""
    is_plain_class = isinstance(found, type) and found.__init__ is object.__init__  # type: ignore[misc]
    if inspect.isabstract(found) or is_plain_class:
        return f"class {name}"
    call = inspect.signature(found)  # type: ignore[arg-type]
    pieces: list[str] = []
    for parameter in call.parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in pieces:
            pieces.append("*")
        pieces.append(_parameter(parameter))
    result = "" if call.return_annotation in (call.empty, "None", None) else f" -> {call.return_annotation}"
    line = f"{name}({', '.join(pieces)}){result}"
    if len(line) <= 100:
        return line
    inside = "".join(f"    {piece},\n" for piece in pieces)
    return f"{name}(\n{inside}){result}"


def _parameter(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {parameter.annotation}{default}"


def markdown(found: object) -> str:
    """A docstring as Markdown: indented code as blocks, its sections as lists."""
    lines: list[str] = []
    blocks = re.split(r"\n\s*\n(?=\S|    )", inspect.getdoc(found) or "")
    in_code = False
    for block in blocks:
        heading = _SECTION.match(block)
        is_code = block.startswith("    ") and heading is None
        if is_code:
            lines.append(f"{'' if in_code else OPEN}{_dedented(block)}")
        else:
            if in_code:
                lines[-1] += CLOSE
            lines.append(_listed(block, heading[1]) if heading else block)
        in_code = is_code
    if in_code:
        lines[-1] += CLOSE
    return "\n\n".join(lines)


def _dedented(block: str) -> str:
    return "\n".join(line[4:] for line in block.splitlines())


def _listed(block: str, heading: str) -> str:
    """`name: words` lines of a section, their continuations joined, as a list; `Returns` as a sentence."""
    body = _dedented(block.partition("\n")[2]).splitlines()
    if heading == "Returns":
        return f"**{_TITLES[heading]}** " + " ".join(line.strip() for line in body)
    items: list[str] = []
    for line in body:
        if line.startswith(" "):
            items[-1] += f" {line.strip()}"
        else:
            name, _, words = line.partition(":")
            items.append(f"- `{name}`:{words}")
    return f"**{_TITLES[heading]}**\n\n" + "\n".join(items)


def _alias_words(name: str) -> str:
    """The assignment of an alias, and the string under it."""
    module = import_module(f"convexport.runtime.{runtime._HOME[name]}")
    body = ast.parse(inspect.getsource(module)).body
    for statement, after in pairwise(body):
        named = isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == name
        if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return f"```python\n{ast.unparse(statement)}\n```\n\n{after.value.value}"
    raise AssertionError(f"{name} has no words under it")
