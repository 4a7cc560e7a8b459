"""`convexport.runtime`: the names that programs may rely on, loaded when asked for, seen by type checkers."""

from __future__ import annotations

import importlib
import json
import logging
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from convexport import runtime
from convexport.runtime.options import say
from helpers import api_page
from helpers.markdown_pages import ROOT

PORTIONS = ":".join(str(ROOT / portion) for portion in ("training", "export", "runtime", "cli"))
HOMES = {name: runtime._HOME.get(name, "errors") for name in runtime.__all__ if name != "__version__"}


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_package_loads_neither_numpy_nor_pillow_nor_a_back_end() -> None:
    loaded = python("import sys, convexport.runtime; print(*sorted(sys.modules))").split()
    assert {"numpy", "PIL", "msgspec", "onnxruntime", "ctypes"} & set(loaded) == set()
    assert [name for name in loaded if name.startswith("convexport.runtime.")] == []


def test_a_version_that_no_metadata_states_ends_no_program() -> None:
    program = (
        f"import sys; bare = [place for place in sys.path if 'site-packages' not in place]\n"
        f"sys.path[:] = {PORTIONS.split(':')} + bare\n"
        "from convexport.runtime import __version__; print(__version__)\n"
        "from convexport.cli.start import classify; sys.argv = ['classify', '--version']; classify()"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0+unknown\nclassify 0+unknown\n", "")


def test_a_name_is_there_when_it_is_first_asked_for() -> None:
    assert python("from convexport.runtime import Classifier; print(Classifier.__module__)") == (
        "convexport.runtime.classifier\n"
    )
    assert python("from convexport.runtime import BundleError; import sys; print('numpy' in sys.modules)") == "False\n"
    assert python("from convexport.runtime import *; print(Classifier.__name__, __version__)") == (
        f"Classifier {version('convexport')}\n"
    )
    assert set(runtime.__all__) <= set(dir(runtime))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'convexport.runtime' has no attribute 'Clasifier'$"):
        runtime.Clasifier  # noqa: B018


@pytest.mark.parametrize(("name", "home"), HOMES.items(), ids=list(HOMES))
def test_every_public_name_is_public_in_the_module_that_it_comes_from(name: str, home: str) -> None:
    module = importlib.import_module(f"convexport.runtime.{home}")
    assert getattr(runtime, name) is getattr(module, name)
    assert name in module.__all__
    assert [listed for listed in module.__all__ if not hasattr(module, listed)] == []


def test_every_public_name_is_on_the_page_of_the_api_and_has_words_there() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(\w+)`$", page, re.MULTILINE)
    assert sorted(headings) == sorted(runtime.__all__)
    assert sorted(name for names in api_page.GROUPS.values() for name in names) == sorted(runtime.__all__)
    for name in headings:
        words = page.partition(f"### `{name}`\n")[2].partition("\n### ")[0].partition("\n## ")[0]
        assert len(re.sub(r"```.*?```", "", words, flags=re.DOTALL).split()) >= 5, name


USER = """
import numpy as np
from convexport.runtime import Classifier, Given, Prediction, Record, to_table

def labels(paths: list[str]) -> dict[str, str]:
    with Classifier("bundle", device="cpu", channels="bgr", top=1) as classifier:
        named: list[Given] = [("zeros", np.zeros((8, 8, 3), np.uint8)), *paths, b"", bytearray(), open("a.png", "rb")]
        table: dict[str, list[object]] = dict(to_table(classifier.classify(named, progress=print)))
        one: Record = classifier.classify_one(paths[0])
        print(repr(classifier), classifier.info()["network"], table)
        return {r.input: r.label if isinstance(r, Prediction) else r.error.kind for r in [one]}

def narrowed(record: Record) -> str:
    return record.error.message if record.error is not None else record.label
"""
WRONG = """
from convexport.runtime import Classifier, Clasifier
Classifier("bundle", divice="cpu")
Classifier("bundle").classify(7)
"""


def checker(name: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a type checker says of a user's programs: the sound one, the wrong one, and one that names every name."""
    pytest.importorskip(name)
    (tmp_path / "sound.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    names = ", ".join(runtime.__all__)
    reveal = "\n".join(f"reveal_type({name})" for name in runtime.__all__)
    (tmp_path / "every.py").write_text(f"from convexport.runtime import {names}\n{reveal}\n")
    command = [sys.executable, "-m", name, *arguments, "sound.py", "wrong.py", "every.py"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def revealed(said: str, pattern: str) -> int:
    """How many names have a type, none of them `Any` or unknown."""
    types = re.findall(pattern, said)
    assert [kind for kind in types if re.fullmatch(r"Any|Unknown|builtins\.object|object", kind)] == []
    return len(types)


@pytest.mark.slow
def test_mypy_sees_every_public_name_in_a_strict_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYPYPATH", PORTIONS)
    options = ("--strict", "--namespace-packages", "--explicit-package-bases", "--no-error-summary")
    said = checker("mypy", tmp_path, *options, f"--cache-dir={ROOT / '.mypy_cache'}").stdout
    assert [line for line in said.splitlines() if line.startswith("sound.py") and ": error:" in line] == []
    assert [line for line in said.splitlines() if line.startswith("every.py") and ": error:" in line] == []
    assert revealed(said, r'every\.py:\d+: note: Revealed type is "(.+)"') == len(runtime.__all__)
    wrong = [
        line.rpartition("[")[2] for line in said.splitlines() if line.startswith("wrong.py") and ": error:" in line
    ]
    assert wrong == ["attr-defined]", "call-arg]", "arg-type]"]


@pytest.mark.slow
def test_pyright_sees_every_public_name(tmp_path: Path) -> None:
    paths = ", ".join(f'"{path}"' for path in PORTIONS.split(":"))
    (tmp_path / "pyrightconfig.json").write_text(
        f'{{"extraPaths": [{paths}], "reportMissingModuleSource": false, "reportWildcardImportFromLibrary": false}}'
    )
    done = checker("pyright", tmp_path, "--outputjson", "--pythonpath", sys.executable)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run here: {(done.stderr or done.stdout).strip()[-200:]}")
    said = json.loads(done.stdout)["generalDiagnostics"]
    errors = [(Path(one["file"]).name, one["rule"]) for one in said if one["severity"] == "error"]
    rules = ("reportAttributeAccessIssue", "reportCallIssue", "reportArgumentType")
    assert errors == [("wrong.py", rule) for rule in rules]
    types = "\n".join(one["message"] for one in said if Path(one["file"]).name == "every.py")
    assert revealed(types, r'is "(.+)"') == len(runtime.__all__)


def test_a_remark_goes_to_the_logger_unless_note_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, int, str]] = []
    monkeypatch.setattr(
        logging.Logger, "handle", lambda logger, entry: logged.append((logger.name, entry.levelno, entry.getMessage()))
    )
    monkeypatch.setattr(logging.Logger, "isEnabledFor", lambda logger, level: level == logging.INFO)
    taken: list[str] = []
    say(None, "100 % slower")
    say(taken.append, "faster")
    assert (logged, taken) == ([("convexport", logging.INFO, "100 % slower")], ["faster"])
