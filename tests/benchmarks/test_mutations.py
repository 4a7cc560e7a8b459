"""The command that puts faults into the code and names those that no test notices."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = '''"""A docstring, 1."""

LIMIT: "int" = 3


def small(value: int, deep: bool = True) -> bool:
    """Another."""
    print(f"{value} of 7")
    return value < LIMIT and not deep
'''
TEST = """\
from convexport.runtime.a import LIMIT, small

def test_small():
    assert LIMIT == 3
    assert small(2, False) and not small(3, False) and not small(2)
"""


@pytest.fixture
def mutations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, in a repository of one module with one test, which does not look at what is printed."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = importlib.import_module("mutations")
    room = tmp_path / "runtime" / "convexport" / "runtime"
    room.mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (room / "__init__.py").touch()
    (room / "a.py").write_text(SOURCE)
    (tmp_path / "tests" / "test_a.py").write_text(TEST)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    return module


def test_every_fault_that_a_file_can_have_is_found_and_none_in_annotations_and_docstrings(
    mutations: ModuleType, tmp_path: Path
) -> None:
    found = mutations.mutations(tmp_path, ["runtime"])
    assert [(one.line, one.kind, one.before, one.after) for one in found] == [
        (3, "constant", "3", "4"),
        (6, "boolean", "True", "False"),
        (8, "removed call", 'print(f"{value} of 7")', "pass"),
        (9, "boolean", "and", "or"),
        (9, "comparison", "<", "<="),
        (9, "boolean", "not ", ""),
    ]
    faulty = mutations.mutated(SOURCE.encode(), found[4]).decode()
    assert faulty == SOURCE.replace("value < LIMIT", "value <= LIMIT")


def test_a_modules_tests_are_those_of_its_name_and_those_that_import_it(mutations: ModuleType, tmp_path: Path) -> None:
    for name, text in {
        "test_a_more.py": "",
        "test_importing.py": "from convexport.runtime import a, b\n",
        "test_of_others.py": "from convexport.runtime import ab\nfrom convexport.runtime.a.b import c\n",
    }.items():
        (tmp_path / "tests" / name).write_text(text)
    assert mutations.tests_of(tmp_path, "runtime/convexport/runtime/a.py") == (
        "tests/test_a.py",
        "tests/test_a_more.py",
        "tests/test_importing.py",
    )


def test_what_no_test_notices_is_named_and_the_tree_is_as_before(
    mutations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["mutations", "--paths", "runtime", "--count", "9", "--json", str(report)])
    assert mutations.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "6 faults, seed 1: 5 killed, 1 survived",
        'survived runtime/convexport/runtime/a.py:8: removed call: print(f"{value} of 7") left out',
    ]
    fates = {(one["mutation"]["line"], one["fate"]) for one in json.loads(report.read_text())["outcomes"]}
    assert fates == {(3, "killed"), (6, "killed"), (8, "survived"), (9, "killed")}
    assert (tmp_path / "runtime/convexport/runtime/a.py").read_text() == SOURCE


def test_tests_that_fail_by_themselves_end_it(
    mutations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests" / "test_a.py").write_text("assert False\n")
    monkeypatch.setattr("sys.argv", ["mutations", "--paths", "runtime", "--count", "1"])
    with pytest.raises(SystemExit) as caught:
        mutations.main()
    assert str(caught.value) == "mutations: tests/test_a.py fail without any fault (exit 2)"
