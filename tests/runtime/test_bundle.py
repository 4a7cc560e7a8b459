"""Bundles: a folder or a zip, and not one unverified byte."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import threading
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from convexport.runtime import bundle
from convexport.runtime.bundle import default_bundle, find_bundles, open_bundle
from convexport.runtime.classifier import Classifier
from convexport.runtime.devices import Device
from convexport.runtime.errors import BundleError, ConvexportError, UsageError
from convexport.runtime.manifest import Part
from helpers.bundles import change_manifest, make_bundle

CPU, CUDA = Device("cpu"), Device("cuda")
NESTED = b'{"format": "3.0", "model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


def zipped(folder: Path, *, top: str = "", compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", compression) as file:
        for member in sorted(folder.rglob("*")):
            file.write(member, top + member.relative_to(folder).as_posix())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path, verify=True)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_of(bundle: Path) -> list[str]:
    return list(json.loads((bundle / "bundle.json").read_bytes())["files"])


# Folder and zip


@pytest.mark.parametrize("top", ["", "tiny/", "another-name/"])
def test_a_zip_of_the_folder_or_of_what_is_in_it_is_a_bundle_as_well(folder: Path, top: str) -> None:
    with open_bundle(folder) as there, open_bundle(zipped(folder, top=top)) as packed:
        assert packed.manifest == there.manifest
        for name in there.manifest.files:
            assert packed.read(name) == there.read(name) == (folder / name).read_bytes()
            assert packed.sha256(name) == there.sha256(name)


def test_files_beside_the_listed_ones_are_never_opened(folder: Path) -> None:
    (folder / ".DS_Store").write_text("whatever")
    os.mkfifo(folder / "would-hang")
    with open_bundle(folder) as bundle, pytest.raises(BundleError) as caught:
        bundle.read(".DS_Store")
    listed = ", ".join(names_of(folder))
    assert str(caught.value) == f"{folder}: '.DS_Store' is not in its manifest; it lists {listed}"


# Damage


@pytest.mark.parametrize("packed", [False, True])
def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(folder: Path, packed: bool) -> None:
    for name in names_of(folder):
        file = folder / name
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        message = refusal(zipped(folder) if packed else folder)
        where = folder.with_suffix(".zip") if packed else folder
        assert message.startswith(f"{where}/{name}: SHA-256 ")
        assert message.endswith("…; the file is damaged; copy or export the bundle again")
        file.write_bytes(data)
    open_bundle(folder, verify=True).close()


def test_a_file_that_is_too_short_too_long_or_missing_is_named(folder: Path) -> None:
    file = folder / "labels.txt"
    data = file.read_bytes()
    damaged = "the file is damaged; copy or export the bundle again"
    file.write_bytes(data[:-1])
    assert refusal(folder) == f"{file}: {len(data) - 1} bytes, expected {len(data)}; {damaged}"
    file.write_bytes(data + b"x" * (5 << 20))
    assert refusal(folder) == f"{file}: more than {len(data)} bytes, expected {len(data)}; {damaged}"
    file.unlink()
    assert refusal(folder) == f"{file}: no such file; copy or export the bundle again"


def test_exchanged_labels_in_the_manifest_are_found_although_every_file_is_as_listed(folder: Path) -> None:
    labels = json.loads((folder / "bundle.json").read_bytes())["labels"]
    english = labels["en"]
    change_manifest(folder, labels={**labels, "en": [english[1], english[0], *english[2:]]})
    assert refusal(folder) == (
        f"{folder}/labels.txt: label 0 is {english[0]!r}, the manifest has {english[1]!r}; export the bundle again"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"avion",\n      "automobile"', '"automobile",\n      "avion"'),  # exchanged in one language alone
        ('"framing": "crop"', '"framing": "stretch"'),
        ('"ink": "any"', '"ink": "light-on-dark"'),
        ('"golden_tolerance": 0.0001', '"golden_tolerance": 1.0'),
        ('"accuracy": 0.9871', '"accuracy": 0.9999'),
        ('{\n  "format"', '{\n\n  "format"'),
    ],
)
def test_a_manifest_that_is_not_as_it_was_exported_is_refused(folder: Path, old: str, new: str) -> None:
    """The golden images prove none of these facts, and they are in no other file."""
    file = folder / "bundle.json"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    said, expected = refusal(folder), json.loads(text)["digest"][:12]
    assert said.startswith(f"{file}: SHA-256 ")
    assert said.endswith(f"…, expected {expected}…; the file is damaged; copy or export the bundle again")


def test_the_digest_can_be_computed_without_convexport(folder: Path) -> None:
    """As docs/format.md says it: the bytes of the file, with zeros in the place of the digest."""
    data = (folder / "bundle.json").read_bytes()
    digest = json.loads(data)["digest"]
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_a_file_that_changes_after_opening_is_not_read(folder: Path) -> None:
    with open_bundle(folder) as bundle:
        (folder / "labels.txt").write_bytes(b"\0" * bundle.manifest.files["labels.txt"].bytes)
        with pytest.raises(BundleError, match=r"labels\.txt: SHA-256"):
            bundle.read("labels.txt")


def test_a_manifest_of_another_format_is_refused_in_clear_words(folder: Path) -> None:
    change_manifest(folder, format=99)
    expected = f"{folder}/bundle.json: format 99, but this convexport reads 2, 3.3; update convexport"
    assert refusal(folder) == expected


def test_an_enormous_manifest_is_not_parsed(folder: Path) -> None:
    (folder / "bundle.json").write_bytes(b" " * (17 << 20))
    assert refusal(folder) == f"{folder}/bundle.json: more than 16,777,216 bytes; export the bundle again"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": "2"}', b'{"format": "3.0"}', b'{"format": 3}', NESTED]
)
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "bundle.json").write_bytes(content)
    assert refusal(folder).startswith(f"{folder}/bundle.json: ")


def test_a_manifest_with_a_negative_size_or_without_labels_is_refused(folder: Path) -> None:
    values = json.loads((folder / "bundle.json").read_bytes())
    change_manifest(folder, labels={"en": [], "fr": []})
    expected = "`$.labels.en` is empty, expected at least one label; export the bundle again"
    assert refusal(folder) == f"{folder}/bundle.json: {expected}"
    change_manifest(folder, labels=values["labels"], files={"labels.txt": {"bytes": -5, "sha256": "0" * 64}})
    expected = "Expected `int` >= 0 - at `$.files[...].bytes`; export the bundle again"
    assert refusal(folder) == f"{folder}/bundle.json: {expected}"


def test_a_name_that_no_file_can_have_is_no_bundle() -> None:
    name = "x" * 300
    assert refusal(Path(name)) == f"{name}: cannot be read (File name too long)"
    assert find_bundles(name) == []


def test_a_folder_without_a_manifest_and_a_file_that_is_no_zip_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}/bundle.json: no such file; is this the folder of a bundle?"
    (tmp_path / "b.zip").write_text("hello")
    expected = (
        "cannot be read from the zip (File is not a zip file); the file is damaged; copy or export the bundle again"
    )
    assert refusal(tmp_path / "b.zip") == f"{tmp_path}/b.zip: {expected}"


# Malice


def test_a_link_that_leads_out_of_the_bundle_is_refused_and_one_inside_is_not(folder: Path, tmp_path: Path) -> None:
    file = folder / "labels.txt"
    (tmp_path / "elsewhere").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert refusal(folder) == f"{file}: a link that leads out of the bundle; replace the link with the file"
    file.unlink()
    (folder / "kept-here").write_bytes((tmp_path / "elsewhere").read_bytes())
    file.symlink_to("kept-here")
    open_bundle(folder, verify=True).close()


def test_a_bundle_reached_through_a_link_is_fine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    open_bundle(tmp_path / "current").close()


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    os.mkfifo(folder / "labels.txt")
    assert refusal(folder).startswith(f"{folder}/labels.txt: not a regular file; ")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "a//b", "c:/x", "a\\b", ".", "a\0b"])
def test_a_manifest_that_lists_a_path_outside_the_bundle_is_refused(folder: Path, path: str) -> None:
    values = json.loads((folder / "bundle.json").read_bytes())
    values["files"][path] = {"bytes": 1, "sha256": "0" * 64}
    change_manifest(folder, **values)
    assert refusal(folder).startswith(f"{folder}/bundle.json: `$.files` is the path {path!r}, ")


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../b", "c:/x"])
def test_a_zip_with_an_entry_that_leads_out_is_refused(folder: Path, name: str) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, "x")
    assert refusal(path).startswith(f"{path}: the entry {name!r} leads out of the zip; ")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_name_twice_is_refused(folder: Path) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("labels.txt", "other labels")
    assert refusal(path).startswith(f"{path}: the entry 'labels.txt' occurs twice; ")


def test_a_zip_with_a_link_is_refused(folder: Path) -> None:
    path = zipped(folder)
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(entry, "/etc/passwd")
    assert refusal(path) == f"{path}: the entry 'link' is a link; zip the folder without links"


@pytest.mark.parametrize(("method", "number"), [(zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)])
def test_a_zip_of_another_compression_is_refused_before_anything_is_read(
    folder: Path, method: int, number: int
) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("notes", "not even listed", compress_type=method)
    expected = f"the entry 'notes' is compressed by method {number}, expected 0 (stored) or 8 (deflated)"
    assert refusal(path) == f"{path}: {expected}; zip the folder again"


def test_a_stored_zip_is_a_bundle(folder: Path) -> None:
    open_bundle(zipped(folder, compression=zipfile.ZIP_STORED), verify=True).close()


def test_an_encrypted_entry_is_refused(folder: Path) -> None:
    path = zipped(folder)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")  # the first one of the zip's directory
    data[entry + 8] |= 1
    path.write_bytes(data)
    assert refusal(path) == f"{path}: the entry 'bundle.json' is encrypted; zip the folder without a password"


def test_a_deflated_entry_that_lies_about_its_size_gives_no_more_than_the_listed_bytes(folder: Path) -> None:
    listed = (folder / "labels.txt").stat().st_size
    (folder / "labels.txt").write_bytes(b"\0" * (30 << 20))
    path = zipped(folder)
    size = struct.pack("<I", 30 << 20)
    assert path.read_bytes().count(size) == 2  # in the entry's own header and in the directory
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<I", listed)))
    with open_bundle(path) as bundle:
        tracemalloc.start()
        with pytest.raises(BundleError, match=r"labels\.txt: "):
            bundle.read("labels.txt")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 20


def test_opening_compares_sizes_and_reading_hashes(folder: Path) -> None:
    file = folder / "model.fp32.onnx"
    data = file.read_bytes()
    file.write_bytes(b"\0" * len(data))
    with open_bundle(folder) as bundle:
        assert bundle.read("labels.txt") == (folder / "labels.txt").read_bytes()
        for look in (lambda: bundle.read(file.name), bundle.verify):
            with pytest.raises(BundleError, match=r"model\.fp32\.onnx: SHA-256"):
                look()
    file.write_bytes(data[:-1])
    for path in (folder, zipped(folder)):
        with pytest.raises(BundleError, match=rf"{file.name}: {len(data) - 1:,} bytes, expected {len(data):,}"):
            open_bundle(path)


def open_files() -> list[str]:
    return [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(
    "wrong",
    [{"language": "xx"}, {"device": "nowhere"}, {"backend": "nothing"}, {"precision": "int8"}, {"format": "9.0"}],
)
def test_a_zip_is_closed_where_a_later_check_fails(folder: Path, wrong: dict[str, str]) -> None:
    if "format" in wrong:
        change_manifest(folder, **wrong)
        wrong = {}
    path = zipped(folder)
    with pytest.raises(ConvexportError) as caught:
        Classifier(path, **wrong)  # type: ignore[arg-type]
    assert str(path) not in open_files()
    assert caught.value.exit_code in (2, 4)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_zip_whose_entries_are_refused_is_closed(folder: Path) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("../out", b"")
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert str(path) not in open_files()  # while `caught` still refers to everything that was open
    assert "leads out of the zip" in caught.value.message


@pytest.mark.parametrize("wrong", [{"top": 0}, {"batch": 0}, {"threads": 0}, {"threads": 5000}, {"workers": -1}])
def test_numbers_are_refused_before_a_bundle_is_looked_for(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))} "):
        Classifier(tmp_path / "nowhere", **wrong)  # type: ignore[arg-type]


def test_a_zip_bomb_is_read_no_further_than_the_manifest_says(folder: Path) -> None:
    (folder / "labels.txt").write_bytes(b"\0" * (30 << 20))
    path = zipped(folder)
    (folder / "labels.txt").unlink()
    assert path.stat().st_size < 1 << 20
    assert "labels.txt: more than " in refusal(path)


@pytest.mark.parametrize("count", [0, 2])
def test_a_zip_holds_exactly_one_manifest(folder: Path, count: int) -> None:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for number in range(count):
            file.write(folder / "bundle.json", f"bundle-{number}/bundle.json")
    found = f"{count} of them" if count else "none"
    assert refusal(path) == f"{path}: expected one bundle.json, at the top or in one folder, found {found}"


def test_a_zip_with_a_name_that_is_no_text_is_refused(folder: Path) -> None:
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("é", "x")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xbc\xff"))
    why = "'utf-8' codec can't decode byte 0xbc in position 0: invalid start byte"
    damaged = "the file is damaged; copy or export the bundle again"
    assert refusal(path) == f"{path}: cannot be read from the zip ({why}); {damaged}"


@pytest.mark.parametrize("offset", range(0, 1000, 37))
def test_a_mutilated_zip_gives_our_error_or_the_bundle(folder: Path, offset: int) -> None:
    path = zipped(folder)
    data = bytearray(path.read_bytes())
    data[-1 - offset % len(data)] ^= 0xFF
    path.write_bytes(data)
    with suppress(BundleError), open_bundle(path) as bundle:
        assert all(bundle.read(name) == (folder / name).read_bytes() for name in bundle.manifest.files)


def test_a_truncated_zip_is_refused(folder: Path) -> None:
    path = zipped(folder)
    data = path.read_bytes()
    for length in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:length])
        assert refusal(path).startswith(str(path))


# Finding


def test_the_only_bundle_is_the_default(tmp_path: Path) -> None:
    only = make_bundle(tmp_path / "bundles" / "one")
    (tmp_path / "bundles" / "notes").mkdir()
    assert find_bundles(tmp_path / "bundles") == [only]
    assert default_bundle(tmp_path / "bundles") == only


def test_where_there_are_several_or_none_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError) as caught:
        default_bundle()
    expected = "no bundle was named; there is no bundle under bundles/; make one with: convexport --model lenet5"
    assert str(caught.value) == expected
    for name in ("lenet5-mnist-fp16", "vgg19-cifar10-fp16"):
        make_bundle(tmp_path / "bundles" / name)
    with pytest.raises(BundleError) as caught:
        default_bundle()
    holds = "bundles/ contains lenet5-mnist-fp16, vgg19-cifar10-fp16; name one of them"
    assert str(caught.value) == f"no bundle was named; {holds}"
    for asked in ("bundles/vgg19-cifar-fp16", "vgg19-cifar-fp16"):
        near = "did you mean bundles/vgg19-cifar10-fp16?"
        assert refusal(Path(asked)) == f"{asked}: no such bundle; {near} {holds}"


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_graph_that_is_read_while_a_library_is_imported_is_compared_as_well(
    folder: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_LARGE", 1)
    with open_bundle(zipped(folder) if packed else folder) as opened:
        assert opened.read_ahead("model.fp32.onnx")() == (folder / "model.fp32.onnx").read_bytes()
    data = bytearray((folder / "model.fp32.onnx").read_bytes())
    data[100] ^= 1
    (folder / "model.fp32.onnx").write_bytes(data)
    place = zipped(folder) if packed else folder
    with open_bundle(place) as opened:
        waited = opened.read_ahead("model.fp32.onnx")
        with pytest.raises(BundleError, match=r"model\.fp32\.onnx: SHA-256 .* the file is damaged"):
            waited()
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx: SHA-256"):
        Classifier(place, device="cpu", backend="onnxruntime")


def test_a_large_graph_is_read_where_the_system_gives_no_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(bundle, "_LARGE", 1)
    monkeypatch.setattr(threading.Thread, "start", none)
    with open_bundle(folder) as opened:
        assert opened.read_ahead("model.fp32.onnx")() == (folder / "model.fp32.onnx").read_bytes()


def _parts(kind: type[Part] = Part) -> list[type[Part]]:
    return [part for child in kind.__subclasses__() for part in (child, *_parts(child))]


def test_no_part_of_a_manifest_can_be_changed() -> None:
    parts = _parts()
    assert {"Input", "Variant", "Manifest"} <= {part.__name__ for part in parts}
    assert [part.__name__ for part in parts if not part.__struct_config__.frozen] == []
