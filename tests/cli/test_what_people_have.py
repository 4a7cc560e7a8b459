"""Nothing vanishes: of twenty kinds of files, each is a record or named in the remark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convexport.cli.classify import main
from convexport.runtime.manifest import Input
from helpers.bundles import make_bundle
from helpers.what_people_have import FAILED, LEFT_OUT, READ, write_what_people_have


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
