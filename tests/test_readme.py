"""What the pages tell a reader to type, open or expect is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from convexport.cli import classify, convexport, convtrain
from convexport.cli.terminal import Parser
from convexport.runtime import errors
from convexport.training import models
from helpers.markdown_pages import ROOT, Fence, commands, fences, git_files, name, pages, prose, table

README = ROOT / "README.md"
PARSERS: dict[str, Callable[[], Parser]] = {
    "classify": classify.parser,
    "convexport": convexport.parser,
    "convtrain": convtrain.parser,
}
SHELLS = {"sh", "bash", "shell", "console"}
EVERY_PAGE = pytest.mark.parametrize("page", pages(), ids=name)
SIGNALS = {129, 141, 143}  # 128 and the number of SIGHUP, SIGPIPE, SIGTERM


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def shell_commands(page: Path) -> list[tuple[str, list[str]]]:
    """Every command of the page's shell blocks, with the place of its block."""
    blocks = [fence for fence in fences(text_of(page)) if fence.info and fence.info.split()[0] in SHELLS]
    return [(f"{name(page)}:{fence.line}", command) for fence in blocks for command in commands(fence)]


def our_command(words: list[str]) -> tuple[str, list[str]] | None:
    """`convtrain --model ...`, also behind a folder, `torchrun` or variables -> the program and its arguments."""
    for position, word in enumerate(words):
        program = word.removeprefix("convexport.cli.")
        if program == word and position and not all("=" in before for before in words[:position]):
            continue
        if PurePosixPath(program).name in PARSERS:
            return PurePosixPath(program).name, words[position + 1 :]
    return None


def refusal(command: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]) -> str:
    """What the real parser says against the arguments; nothing where it takes them."""
    program, arguments = command
    try:
        PARSERS[program]().parse_args(arguments)
    except SystemExit as stop:
        said = capsys.readouterr().err.strip()
        return said if stop.code else ""
    return ""


@EVERY_PAGE
def test_every_command_line_of_ours_parses(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [(place, our_command(words)) for place, words in shell_commands(page)]
    refusals = [(place, said) for place, ours in found if ours and (said := refusal(ours, capsys))]
    assert refusals == []


def test_the_readme_shows_each_command() -> None:
    shown = {ours[0] for _, words in shell_commands(README) if (ours := our_command(words))}
    assert shown == set(PARSERS)


def test_a_command_line_with_an_option_that_is_not_there_would_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "$ .venv/bin/classify a.png \\\n    --tpo 3 | head  # three\nsome output --bad\n$ X=1 convtrain --model vgg19\n"
    )
    found = commands(Fence("console", text, 1))
    assert found == [
        [".venv/bin/classify", "a.png", "--tpo", "3"],
        ["head"],
        ["X=1", "convtrain", "--model", "vgg19"],
    ]
    ours = [our_command(words) for words in found]
    assert ours == [("classify", ["a.png", "--tpo", "3"]), None, ("convtrain", ["--model", "vgg19"])]
    assert refusal(("classify", ["a.png", "--tpo", "3"]), capsys) == (
        "classify: option --tpo is not known; did you mean --top?"
    )
    torchrun = ["torchrun", "--nproc-per-node", "2", "-m", "convexport.cli.convtrain", "--model", "vgg19"]
    assert our_command(torchrun) == ("convtrain", ["--model", "vgg19"])


@EVERY_PAGE
def test_every_script_and_test_named_in_a_command_is_there(page: Path) -> None:
    words = [(place, word) for place, command in shell_commands(page) for word in command]
    paths = [(place, word.partition("::")[0]) for place, word in words if word.startswith(("benchmarks/", "tests/"))]
    assert [(place, path) for place, path in paths if not (ROOT / path).exists()] == []


@EVERY_PAGE
def test_every_make_target_named_is_in_the_makefile(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test", "check"} <= targets
    named = {words[1] for _, words in shell_commands(page) if words[0] == "make" and len(words) > 1}
    named |= set(re.findall(r"`make ([a-z][\w-]*)`", text_of(page)))
    assert named - targets == set()


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


@EVERY_PAGE
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            broken.append(target)
        elif anchor and there.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", prose(text_of(there)), re.MULTILINE)
            broken += [target] if anchor not in {slug(heading) for heading in headings} else []
    assert broken == []


@EVERY_PAGE
def test_every_page_of_the_docs_named_in_the_text_is_there(page: Path) -> None:
    named = re.findall(r"`(docs/[\w/.-]+\.md)`", text_of(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


def exit_codes() -> list[int]:
    """0, and every code that a class of runtime/errors.py carries."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return sorted({0, *(kind.exit_code for kind in classes if issubclass(kind, errors.ConvexportError))})


def test_every_table_of_exit_codes_holds_the_codes_of_the_error_classes() -> None:
    tables = {}
    for page in pages():
        for heading in re.findall(r"^\| *(exit[\w ]*?) *\|", text_of(page), re.MULTILINE | re.IGNORECASE):
            cells = [row[0].strip("`").split(",") for row in table(text_of(page), heading)]
            codes = [int(code) for cell in cells for code in cell]
            tables[name(page), heading] = [code for code in codes if code not in SIGNALS]
    assert ("docs/commands.md", "exit") in tables
    assert {place: codes for place, codes in tables.items() if codes != exit_codes()} == {}


@pytest.mark.parametrize("program", PARSERS)
def test_the_exit_codes_that_a_help_text_names_are_those_of_the_error_classes(program: str) -> None:
    named = re.findall(r"(?<=[ ,])(\d+) \w", PARSERS[program]().format_help().partition("exit codes:")[2])
    assert {int(code) for code in named} <= {*exit_codes(), *SIGNALS}


def tree_block() -> str:
    """The README's drawing of the tree: the fenced block that names all four portions."""
    found = [
        fence.text
        for fence in fences(text_of(README))
        if fence.info in {"", "text"} and all(f"{portion}/" in fence.text for portion in ("training", "export", "cli"))
    ]
    assert len(found) == 1, "README.md: expected one block that draws the tree"
    return found[0]


def drawn_paths(block: str) -> list[str]:
    """The paths that a tree names, from the root: the first word of every line, under the one it is indented below."""
    found: list[str] = []
    above: list[tuple[int, str]] = []
    for line in block.splitlines():
        match = re.match(r"([│├└─\s|`+-]*)(\S+)", line)
        if match is None or (match[2] in {"convexport/", ".", "./"} and not match[1]):
            continue
        while above and above[-1][0] >= len(match[1]):
            above.pop()
        path = (above[-1][1] if above else "") + match[2]
        if match[2].endswith("/"):
            above.append((len(match[1]), path))
        found.append(path)
    return found


def test_the_tree_in_the_readme_names_only_what_is_there() -> None:
    known = git_files("--cached", "--others", "--exclude-standard")
    folders = {f"{parent.as_posix()}/" for path in known for parent in PurePosixPath(path).parents}
    drawn = drawn_paths(tree_block())
    assert len(drawn) > 5
    assert [path for path in drawn if path not in known and f"{path.rstrip('/')}/" not in folders] == []


def test_the_tree_in_the_readme_leaves_out_no_folder_at_the_top() -> None:
    drawn = {path.partition("/")[0] for path in drawn_paths(tree_block())}
    top = {path.partition("/")[0] for path in git_files() if "/" in path and not path.startswith(".")}
    assert sorted(top - drawn) == []


def test_a_tree_is_read_as_it_is_drawn() -> None:
    drawing = "convexport/\n├── docs/          pages\n│   └── format.md  formats\n└── cli/convexport/cli/  commands\n"
    assert drawn_paths(drawing) == ["docs/", "docs/format.md", "cli/convexport/cli/"]


def test_no_tracked_file_holds_a_path_of_the_machine_it_was_made_on_or_an_index_of_packages() -> None:
    # In two pieces, so that this file does not hold them either.
    unwanted = re.compile(rb"/wor" + rb"k/|https?://[^\s\"'<>]+/simp" + rb"le\b")
    held = {path: match[0] for path in git_files() if (match := unwanted.search((ROOT / path).read_bytes()))}
    assert held == {}


def test_every_page_is_free_of_trailing_spaces_and_ends_with_one_newline() -> None:
    texts = {name(page): text_of(page) for page in pages()}
    assert [page for page, text in texts.items() if re.search(r"[ \t]$", text, re.MULTILINE)] == []
    assert [page for page, text in texts.items() if not text.endswith("\n") or text.endswith("\n\n")] == []


def test_no_page_holds_a_gap_that_was_to_be_filled() -> None:
    gaps = {name(page): found for page in pages() if (found := re.findall(r"@[A-Z]+@|\bTODO\b", text_of(page)))}
    assert gaps == {}


def test_the_networks_in_the_readme_have_the_parameters_stated() -> None:
    rows = [row for row in table(text_of(README), "network") if len(row) > 2 and re.fullmatch(r"[\d,]+", row[2])]
    stated = {row[0].strip("`"): int(row[2].replace(",", "")) for row in rows}
    assert len(stated) > 3
    assert stated == {network: models.parameter_count(models.build(network)) for network in stated}


def test_the_readme_names_every_network() -> None:
    assert [network for network in models.MODELS if f"`{network}`" not in text_of(README)] == []
