"""The pages under docs/ say what the code does: tables, trees, help texts and an example of each format."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomllib

from convexport.runtime import errors, manifest, records
from convexport.training import checkpoint, resume
from generated_docs import PARTS, SCHEMA, error_tree, modules, parts, schema
from helpers import cost_of_change
from helpers.cost_of_change import PROBES, Probe, cost
from helpers.markdown_pages import ROOT, fences, pages, section, table

ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
FORMATS = (ROOT / "docs/format.md").read_text(encoding="utf-8")
RENEW = "python tests/generated_docs.py writes it anew"


def block(heading: str, info: str) -> str:
    """The one fenced block of that kind under a heading of docs/format.md."""
    (found,) = [fence.text for fence in fences(section(FORMATS, heading)) if fence.info == info]
    return found


def everything(value: Any) -> Any:
    """A struct as plain JSON values."""
    return json.loads(msgspec.json.encode(value))


@pytest.mark.parametrize("name", PARTS)
def test_what_is_made_from_the_code_is_up_to_date(name: str) -> None:
    if name.endswith("--help") and sys.version_info >= (3, 13):
        pytest.skip("from Python 3.13 on, argparse writes `-o, --output FILE` for `-o FILE, --output FILE`")
    held = [found[name] for page in pages() if name in (found := parts(page.read_text(encoding="utf-8")))]
    assert held == [PARTS[name]()], RENEW


def test_every_generated_part_of_a_page_is_one_we_know() -> None:
    assert {name for page in pages() for name in parts(page.read_text(encoding="utf-8"))} == set(PARTS)


def test_the_module_table_holds_every_module_of_the_tree_and_says_what_each_holds() -> None:
    rows = table(section(ARCHITECTURE, "## The modules"), "module")
    assert [row[0] for row in rows] == list(modules())
    assert {"training/loop.py", "export/gate.py", "runtime/backends/base.py", "cli/classify/__init__.py"} <= set(
        modules()
    )
    assert [path for path, words in rows if len(words) < 20] == []


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_what_a_change_costs_is_counted_where_the_code_names_it(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a docstring nor a comment nor a part of another word names it; its own module is no edit."""
    name = probe.name
    monkeypatch.setattr(cost_of_change, "ROOT", tmp_path)
    room = tmp_path / "runtime" / "convexport" / "runtime"
    room.mkdir(parents=True)
    uses = f"from {probe.among} import x\n" if probe.among else ""
    silent = f'{uses}"""Of {name}."""\nnot_u{name}_ = 1  # {name}\n'
    (room / "silent.py").write_text(silent)
    (room / "table.py").write_text(
        f'{silent}NAMES = ("{name}",)\nclass A:\n    def b(self):\n        return "{name}"\n'
    )
    (room / f"{name}.py").write_text(f'{silent}NAME = "{name}"\n')
    assert cost(probe) == cost_of_change.Cost(
        (f"runtime/{name}.py",), (("runtime/table.py", ""), ("runtime/table.py", "A.b"))
    )


def test_the_import_order_drawn_is_the_one_enforced() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert " -> ".join(layer.removeprefix("convexport.") for layer in layers) in ARCHITECTURE


def error_classes() -> dict[str, type[errors.ConvexportError]]:
    """The classes of runtime/errors.py by name, in their order."""
    found = dict(inspect.getmembers(errors, inspect.isclass))
    own = {name: kind for name, kind in found.items() if kind.__module__ == errors.__name__}
    return dict(sorted(own.items(), key=lambda item: inspect.getsourcelines(item[1])[1]))


def test_the_error_tree_drawn_is_the_tree_of_the_classes() -> None:
    drawn: list[tuple[str, str, int]] = []
    above: list[tuple[int, str, int]] = []
    for line in error_tree().splitlines():
        match = re.fullmatch(r"([│├└─ ]*)(\w+) +(\d*) *\S.*", line)
        assert match is not None, line
        while above and above[-1][0] >= len(match[1]):
            above.pop()
        parent, inherited = above[-1][1:] if above else ("Exception", 0)
        code = int(match[3] or inherited)
        above.append((len(match[1]), match[2], code))
        drawn.append((match[2], parent, code))
    assert drawn == [(name, kind.__mro__[1].__name__, kind.exit_code) for name, kind in error_classes().items()]


def test_each_format_has_the_number_that_its_reader_reads() -> None:
    rows = table(FORMATS, "format")
    assert {row[0]: row[1] for row in rows} == {
        "manifest": manifest.FORMAT,
        "checkpoint": checkpoint.FORMAT,
        "state": resume.FORMAT,
    }
    assert f"`{checkpoint.KEY}`" in section(FORMATS, "## Checkpoint")
    assert f"`{resume.KEY}`" in section(FORMATS, "## State for resuming")
    assert [row[3] for row in rows if row[3] not in modules()] == []


def test_the_manifest_shown_is_whole_and_valid() -> None:
    example = block("## Manifest", "json")
    found, remarks = manifest.decode(example.encode())
    assert remarks == ()
    assert everything(found) == json.loads(example)  # with every key that has a default
    assert list(found.variants) == ["fp16", "fp32"]
    measures = [measure for variant in found.variants.values() for measure in variant.verification.measures]
    assert {measure.passed for measure in measures} == {True}


def test_the_schema_that_is_shipped_is_the_types_own() -> None:
    assert SCHEMA.read_bytes() == schema(), RENEW


def test_the_schema_takes_the_manifest_shown_and_refuses_one_with_a_fault() -> None:
    import jsonschema

    validator = jsonschema.Draft202012Validator(json.loads(schema()))
    shown = json.loads(block("## Manifest", "json"))
    assert list(validator.iter_errors(shown)) == []
    assert list(validator.iter_errors(shown | {"format": "3.7", "new": 1})) == []  # a newer minor version
    faults = {"format": "4.0", "activation": "tanh", "labels": {"en": "cat"}, "variants": {"fp32": {}}, "name": None}
    assert [key for key, wrong in faults.items() if validator.is_valid(shown | {key: wrong})] == []


def test_the_bundle_drawn_holds_the_files_of_the_manifest_shown() -> None:
    drawn: set[str] = set()
    folder = ""
    for line in block("## Bundle", "text").splitlines()[1:]:
        match = re.match(r"([│├└─ ]*)(\S+)", line)
        assert match is not None, line
        folder = folder if len(match[1]) > 4 else ""
        if match[2].endswith("/"):
            folder = match[2]
        else:
            drawn.add(folder + match[2])
    assert drawn == {"bundle.json", *manifest.decode(block("## Manifest", "json").encode())[0].files}


def test_the_checkpoint_header_shown_is_whole_and_valid() -> None:
    example = block("## Checkpoint", "json")
    found = msgspec.json.decode(example, type=checkpoint.Header)
    assert everything(found) == json.loads(example)
    assert found.format == checkpoint.FORMAT


def test_the_state_shown_is_whole_and_valid() -> None:
    example = block("## State for resuming", "json")
    found = msgspec.json.decode(example, type=resume.Place)
    assert everything(found) == json.loads(example)
    assert found.format == resume.FORMAT


def shown_records() -> list[records.Record]:
    """The records shown as JSON lines."""
    found: list[records.Record] = []
    for line in block("## Records", "json").splitlines():
        kind = records.Failure if "error" in json.loads(line) else records.Prediction
        found.append(msgspec.json.decode(line, type=kind))
    return found


def test_the_json_lines_shown_are_what_records_write() -> None:
    written = b"".join(records.json_line(record) for record in shown_records())
    assert written.decode() == block("## Records", "json")
    assert {type(record) for record in shown_records()} == {records.Prediction, records.Failure}


def test_the_csv_shown_is_what_the_same_records_write() -> None:
    lines = [records.csv_header(2), *(records.csv_line(record, 2) for record in shown_records())]
    assert b"".join(lines).decode() == block("## Records", "csv")


def test_the_text_shown_is_what_the_same_records_write() -> None:
    from convexport.cli.classify.text_lines import text_lines

    labels = manifest.decode(block("## Manifest", "json").encode())[0].classes
    answers = shown_records()
    two = msgspec.structs.replace(answers[-1], top=answers[-1].top[:1])
    several, single = ([text for _, text in text_lines(found, labels, "en")] for found in (answers, [two]))
    lines = ["$ classify scans --top 2\n", *several, "$ classify scans/two.png\n", *single]
    assert "".join(lines) == block("## Records", "console")


def test_every_kind_of_failure_is_named_in_the_format() -> None:
    documented = re.findall(r"`([a-z-]+)`", (records.Problem.__doc__ or "").partition("Kinds:")[2])
    assert len(documented) > 3
    assert [kind for kind in documented if f"`{kind}`" not in section(FORMATS, "## Records")] == []


def test_decisions_are_numbered_in_order_and_have_the_three_parts() -> None:
    found = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [page.name[:5] for page in found] == [f"{number:04d}-" for number in range(1, len(found) + 1)]
    for number, page in enumerate(found, 1):
        lines = page.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {number}. "), page.name
        headings = [line for line in lines if line.startswith("## ")]
        assert headings == ["## Context", "## Decision", "## Consequences"], page.name
        assert len(lines) <= 60, f"{page.name} is longer than a page"
