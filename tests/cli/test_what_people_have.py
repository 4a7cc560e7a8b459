"""Nothing vanishes: of twenty kinds of files, each is a record or named in the remark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convexport.cli.classify import main
from convexport.runtime.manifest import Input
from helpers.bundles import make_bundle
from helpers.commands import line, shell
from helpers.what_people_have import FAILED, LEFT_OUT, READ, write_malformed_files, write_what_people_have


def test_each_of_twenty_kinds_of_files_is_a_record_or_named_in_the_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "bundle", Input(height=12, width=12, channels=3))
    write_what_people_have(tmp_path / "album")
    monkeypatch.chdir(tmp_path)
    assert main(["album", "--bundle", "bundle", "--format", "jsonl"]) == 3
    out, err = capsys.readouterr()
    records = {Path(record["input"]).relative_to("album"): record for record in map(json.loads, out.splitlines())}
    assert sorted(map(str, records)) == sorted([*READ, *FAILED])
    for name in READ:
        assert "error" not in records[Path(name)], name
    for name, reason in FAILED.items():
        assert records[Path(name)]["error"]["message"].startswith(f"album/{name}: {reason}")
    assert records[Path("12-108-megapixels.jpg")]["notes"] == ["decoded at 1/8 of its 12,000 x 9,000 pixels"]
    *_, remark, total = err.splitlines()
    hidden, raw = f"hidden: 1 (album/{LEFT_OUT[1]})", f"1 (album/{LEFT_OUT[0]})"
    expected = f"2 images were left out. {hidden}; only PNG, JPEG, WebP, BMP, GIF or TIFF files are read: {raw}"
    assert remark == f"classify: {expected}"
    assert total == "classify: 5 of 19 inputs could not be read"


def test_each_of_a_hundred_malformed_files_is_one_record_and_no_library_writes_to_stderr(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", Input(height=12, width=12, channels=3))
    (tmp_path / "album").mkdir()
    names = write_malformed_files(tmp_path / "album", 100)
    done = shell(line("classify", "album", "--bundle", "bundle", "--format", "jsonl"), tmp_path)
    records = [json.loads(row) for row in done.stdout.splitlines()]
    assert [record["input"] for record in records] == [f"album/{name}" for name in names]
    failed = sum("error" in record for record in records)
    first, *rest = done.stderr.splitlines()
    assert first.startswith("classify: onnxruntime on cpu in fp32")
    assert rest == [f"classify: {failed} of 100 inputs could not be read"]
    assert failed > 50
