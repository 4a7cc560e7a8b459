"""A file of labels -> the labels in the order of the outputs: text, JSON in any layout, YAML's `names:`, `imagenet`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from convexport.runtime.errors import UsageError, first_line
from convexport.runtime.text import counted
from convexport.training.datasets import torchvision_datasets

_WRAPPERS = ("id2label", "label2id", "names", "labels", "classes")
_SYNTAX = re.compile(r"[\[\]{},]+|[\"'].*[\"'],?|.*[\"']\s*:.*|-\s.*|names:.*|.*[\[{]$")
_NUMBERED = re.compile(r"(\d+)[\s:,;]+\S")
_SYNSET = re.compile(r"n\d{8}[\s:,;]+\S")


def read_labels(path: Path) -> tuple[str, ...]:
    """Labels in the order of the outputs. Two may be equal: ImageNet has two cranes.

    Args:
        path: The file. `imagenet`, if no file has that name, means ImageNet's 1,000 classes.

    Raises:
        UsageError: It cannot be read, or its content is not labels.
    """
    if str(path) == "imagenet" and not path.exists():
        return imagenet()
    text = _text(path)
    if text.lstrip()[:1] in {"[", "{"}:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UsageError(
                f"--classes {path} begins like JSON but is not JSON ({first_line(error)})",
                "write one label in each line, or a JSON list",
            ) from error
        return _checked(_from_json(found, path), path)
    lines = text.splitlines()
    if any(re.match(r"names\s*:", line) for line in lines):
        return _checked(_from_yaml(lines, path), path)
    return _checked([line.strip() for line in lines if line.strip()], path, is_text=True)


def imagenet() -> tuple[str, ...]:
    """ImageNet's 1,000 classes in their usual order, as torchvision names them."""
    torchvision_datasets()
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return data.decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--classes {path} cannot be read ({first_line(error)})", "expected one label in each line"
        ) from error


def _checked(labels: list[str], path: Path, *, is_text: bool = False) -> tuple[str, ...]:
    if len(labels) < 2:
        raise UsageError(
            f"--classes {path} contains {counted(len(labels), 'label')}, expected two or more", "write one in each line"
        )
    for label in labels:
        if not label or not label.isprintable() or (is_text and _SYNTAX.fullmatch(label)):
            raise UsageError(
                f"--classes {path}: {label[:80]!r} is not a label", "write one label in each line, or valid JSON"
            )
    if is_text:
        for pattern, what in ((_NUMBERED, "a number"), (_SYNSET, "a WordNet number")):
            if all(pattern.match(label) for label in labels):
                raise UsageError(
                    f"--classes {path}: each line begins with {what}, as in {labels[0]!r}",
                    f"write only the labels, in order: sed -E 's/^[^ :,;]+[ :,;]+//' {path} > labels.txt",
                )
    return tuple(labels)


def _from_json(found: Any, path: Path) -> list[str]:
    """A list, or a dictionary from index to label or from label to index; pairs of WordNet number and label."""
    if isinstance(found, dict):
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), (dict, list))), None)
        if inner is not None:
            return _from_json(inner, path)
        if found and all(isinstance(value, int) for value in found.values()):
            found = {value: label for label, value in found.items()}
        try:
            numbered = {int(key): value for key, value in found.items()}
        except (TypeError, ValueError):
            numbered = {}
        if not numbered or sorted(numbered) != list(range(len(numbered))):
            raise UsageError(
                f"--classes {path}: its keys are not the numbers from 0 to {max(len(found) - 1, 0)}",
                "write a list, or a dictionary from each number to its label",
            )
        found = [numbered[index] for index in range(len(numbered))]
    labels: list[Any] = [value[-1] if isinstance(value, list) and value else value for value in found]
    wrong = next((label for label in labels if not isinstance(label, str)), None)
    if wrong is not None:
        raise UsageError(f"--classes {path}: {str(wrong)[:80]!r} is not a label", "write a list of strings")
    return [label.strip() for label in labels]


def _from_yaml(lines: list[str], path: Path) -> list[str]:
    """`names:` as ultralytics and similar tools write it: a list in brackets, of lines, or lines with numbers."""
    start = next(number for number, line in enumerate(lines) if re.match(r"names\s*:", line))
    inline = lines[start].partition(":")[2].strip()
    if inline:
        parts = re.findall(r"'[^']*'|\"[^\"]*\"|[^,\[\]{}]+", inline)
        labels = [_unquoted(re.sub(r"^\s*\d+\s*:", "", part) if inline[0] == "{" else part) for part in parts]
        return [label for label in labels if label]
    labels = []
    for line in lines[start + 1 :]:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*-\s+(.+)|\s+(\d+)\s*:\s*(.+)", line)
        if match is None:
            break
        if match[2] is not None and int(match[2]) != len(labels):
            raise UsageError(f"--classes {path}: number {match[2]}, expected {len(labels)}", "number them from 0")
        labels.append(_unquoted(match[1] or match[3]))
    return labels


def _unquoted(text: str) -> str:
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text.partition(" #")[0].strip()
