"""`classify`: what a person types, sees and gets back."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convexport.cli.classify import main
from convexport.runtime.manifest import Input
from helpers.bundles import change_manifest, make_bundle, pictures, png

INPUT = Input(height=12, width=12, channels=3)
# What `make_bundle`'s network says of `pictures(3, INPUT)`.
LABELS = ["cat", "truck", "airplane"]
FRENCH = ["chat", "camion", "avion"]
BANNED = {"torch", "torchvision", "onnx", "onnxscript", "safetensors", "sklearn", "matplotlib", "jinja2"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one bundle, `images/0.png` to `images/2.png` and an empty folder."""
    make_bundle(tmp_path / "bundles" / "tiny-noise-fp32", INPUT)
    (tmp_path / "images").mkdir()
    (tmp_path / "empty").mkdir()
    for number, picture in enumerate(pictures(3, INPUT)):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(picture))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Said:
    """What one run of the command said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.last = err.splitlines()[-1] if err else ""


@pytest.fixture
def classify(place: Path, capsysbinary: pytest.CaptureFixture[bytes]):
    def run(*arguments: str) -> Said:
        try:
            code = main([*arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsysbinary.readouterr()
        return Said(code, captured.out.decode(), captured.err.decode())

    return run


COMMAND = [sys.executable, "-m", "convexport.cli.classify"]


# Text


def test_one_picture_is_answered_in_words_first(classify) -> None:
    said = classify("images/0.png")
    assert said.code == 0
    assert said.out == "Prediction: Cat\nimages/0.png  cat          73.7 %\n"
    assert said.err.startswith("classify: onnxruntime on ")


def test_in_french_the_words_and_the_label_are_french(classify) -> None:
    assert classify("--lang", "fr", "images/2.png").out == "Prédiction: Avion\nimages/2.png  avion        76.8 %\n"


def test_several_pictures_give_aligned_lines_in_order(classify) -> None:
    said = classify("images", "--top", "2")
    assert said.code == 0
    assert said.out.splitlines() == [
        "images/0.png  cat          73.7 %  frog          8.4 %",
        "images/1.png  truck        36.3 %  cat          14.7 %",
        "images/2.png  airplane     76.8 %  dog           6.2 %",
    ]


def test_options_may_stand_between_the_pictures(classify) -> None:
    said = classify("images/0.png", "--lang", "fr", "images/1.png")
    assert [line.split()[1] for line in said.out.splitlines()] == FRENCH[:2]


def test_what_stands_behind_two_dashes_is_a_name_and_no_option(classify, place: Path) -> None:
    (place / "images" / "1.png").rename(place / "-1.png")
    assert classify("--", "-1.png").out.splitlines()[0] == "Prediction: Truck"
    said = classify("images/0.png", "--top", "1", "--", "-1.png", "--top")
    assert said.code == 3
    assert [line.split()[0] for line in said.out.splitlines()] == ["images/0.png", "-1.png", "--top:"]


def test_a_name_with_control_characters_cannot_command_the_terminal(classify, place: Path) -> None:
    (place / "images" / "0.png").rename(place / "\x1b[2Jevil\n.png")
    assert classify("\x1b[2Jevil\n.png").out.splitlines()[1].startswith(r"\x1b[2Jevil\n.png  cat")


def test_neither_can_a_name_in_a_bundle(classify, place: Path) -> None:
    manifest = place / "bundles/tiny-noise-fp32/bundle.json"
    values = json.loads(manifest.read_bytes())
    label = "\x1b[2Jcat"
    english = [label if name == "cat" else name for name in values["labels"]["en"]]
    golden = [{**picture, "probabilities": [float(name == label) for name in english]} for picture in values["golden"]]
    labels = "\n".join(english).encode()
    (manifest.parent / "labels.txt").write_bytes(labels)
    listed = {"bytes": len(labels), "sha256": hashlib.sha256(labels).hexdigest()}
    values["files"]["labels.txt"] = listed
    change_manifest(manifest.parent, labels={"en": english}, golden=golden, files=values["files"])
    said = classify("--self-test")
    assert r"  \x1b[2Jcat  " in said.out
    assert "\x1b" not in said.out
    files = {"\x1b[2Jevil\n": {"bytes": 1, "sha256": "0" * 64}, **values["files"]}
    change_manifest(manifest.parent, files=files)
    where = r"bundles/tiny-noise-fp32/\x1b[2Jevil\n"
    assert classify("images").err == f"classify: {where}: no such file; copy or export the bundle again\n"


# Bad input


def test_bad_inputs_have_their_lines_and_the_good_ones_are_answered(classify, place: Path) -> None:
    (place / "letter.png").write_text("Dear Sir")
    Image.fromarray(np.tile(pictures(1, INPUT)[0], (20, 20, 1))).save(place / "cut.jpg")
    (place / "cut.jpg").write_bytes((place / "cut.jpg").read_bytes()[:2000])
    said = classify("images/0.png", "nope.png", "letter.png", "empty", "cut.jpg", "images/1.png", "*.gif")
    assert said.code == 3
    assert re.sub(r"truncated \(\d+ bytes not processed\)", "truncated", said.out).splitlines() == [
        "images/0.png  cat          73.7 %",
        "nope.png: no such file",
        "letter.png: not an image (it begins b'Dear Sir'), expected PNG, JPEG, WebP, BMP, GIF or TIFF",
        "empty: no PNG, JPEG, WebP, BMP, GIF or TIFF file in this folder",
        "cut.jpg: damaged or truncated (image file is truncated)",
        "images/1.png  truck        36.3 %",
        "*.gif: no file matches",
    ]
    assert said.last == "classify: 5 of 7 inputs could not be read"


def test_a_hundred_thousand_pixels_squared_are_refused_at_once(classify, place: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (100_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    (place / "bomb.png").write_bytes(header)
    said = classify("bomb.png", "images/0.png")
    assert said.code == 3
    assert said.out.splitlines()[0] == (
        "bomb.png: declares 100,000 x 100,000 pixels, more than the limit of 89,478,485"
    )
    assert "cat" in said.out.splitlines()[1]


# Forms


def test_json_lines_hold_one_record_an_input(classify) -> None:
    said = classify("images", "nope.png", "--format", "jsonl")
    assert said.code == 3
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [record.get("label") for record in records] == [*LABELS, None]
    assert list(records[0]) == ["input", "label", "index", "probability", "top", "notes"]
    assert len(records[0]["top"]) == 3
    assert records[3] == {"input": "nope.png", "error": {"kind": "missing", "message": "nope.png: no such file"}}


def test_csv_holds_the_same_flat(classify) -> None:
    said = classify("images", "nope.png", "--format", "csv", "--top", "2", "--lang", "fr")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [row["label"] for row in rows] == [*FRENCH, ""]
    assert rows[0]["top_2_label"] == "grenouille"
    assert (rows[3]["error_kind"], rows[3]["error_message"]) == ("missing", "nope.png: no such file")


def test_names_come_from_standard_input_in_the_place_of_the_dash(classify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("images/1.png\r\n\nimages\n"))
    said = classify("images/2.png", "-", "images/0.png", "--format", "jsonl")
    names = [json.loads(line)["input"] for line in said.out.splitlines()]
    expected = ["2", "1", "0", "1", "2", "0"]
    assert names == [f"images/{number}.png" for number in expected]


def test_no_name_on_standard_input_is_no_record_and_no_mistake(classify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    said = classify("-", "--format", "csv", "--top", "1")
    assert (said.code, len(said.out.splitlines())) == (0, 1)
    assert said.last == "classify: standard input named no image"


def test_the_output_file_appears_whole_and_standard_output_stays_empty(classify, place: Path) -> None:
    said = classify("images", "nope.png", "--format", "jsonl", "--output", "labels.jsonl")
    assert (said.code, said.out) == (3, "")
    assert len((place / "labels.jsonl").read_bytes().splitlines()) == 4
    assert sorted(path.name for path in place.iterdir()) == ["bundles", "empty", "images", "labels.jsonl"]


def test_an_output_file_that_cannot_be_completed_leaves_the_old_one(
    classify, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "labels.jsonl").write_text("old")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("convexport.runtime.records.json_lines", interrupted)
    said = classify("images", "--format", "jsonl", "--output", "labels.jsonl")
    assert (said.code, said.last) == (130, "classify: interrupted")
    assert (place / "labels.jsonl").read_text() == "old"
    assert sorted(path.name for path in place.iterdir()) == ["bundles", "empty", "images", "labels.jsonl"]


def test_an_output_that_is_a_device_is_written_to_and_not_replaced(classify) -> None:
    assert classify("images", "--output", "/dev/null").code == 0
    assert not Path("/dev/null").is_file()


def test_an_output_that_is_a_link_stays_one_and_what_it_leads_to_is_written(classify, place: Path) -> None:
    (place / "real.txt").write_text("old")
    (place / "link.txt").symlink_to("real.txt")
    assert classify("images/0.png", "--output", "link.txt").code == 0
    assert (place / "link.txt").is_symlink()
    assert (place / "real.txt").read_text().startswith("Prediction: Cat")


def test_a_full_disk_is_one_line_and_exit_code_4(classify) -> None:
    said = classify("images", "--output", "/dev/full")
    why = "cannot be written (No space left on device); free some disk space, or name another place"
    assert (said.code, said.last) == (4, f"classify: --output /dev/full: {why}")
    with Path("/dev/full").open("wb") as full:
        found = subprocess.run([*COMMAND, "--info"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (found.returncode, found.stderr.splitlines()[-1]) == (4, f"classify: standard output: {why}")


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no image was named; name files, folders or globs, see classify --help"),
        (["--bundel", "x"], "option --bundel is not known; did you mean --bundle?"),
        (["x", "--format", "jsnl"], "format 'jsnl' is not known; did you mean 'jsonl'?"),
        (["x", "--device", "gpu"], "device 'gpu' is not known; expected cpu, cuda or cuda:N"),
        (["x", "--lang", "de"], "language 'de' is not known; known: en, fr"),
        (["x", "--top", "0"], "top 0: expected 1 or more"),
        (["x", "--batch", "-1"], "batch -1: expected 1 or more"),
        (["x", "--batch", "many"], "argument --batch: invalid int value: 'many'"),
        (["x", "--threads", "0"], "threads 0: expected 1 or more"),
        (
            ["x", "--output", "no/such/folder"],
            "--output no/such/folder: cannot be written (No such file or directory); name another place",
        ),
        (["--info", "--format", "csv"], "--info cannot write csv; leave out --format"),
        (["--info", "x"], "--info takes no inputs, found 'x'"),
        (["--self-test", "x"], "--self-test takes no inputs, found 'x'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(classify, arguments: list[str], line: str) -> None:
    said = classify(*arguments)
    assert (said.code, said.out, said.last) == (2, "", f"classify: {line}")


# Bundles


def test_an_empty_name_of_a_bundle_is_not_the_default(classify) -> None:
    said = classify("images", "--bundle", "")
    assert (said.code, said.last) == (4, "classify: bundle.json: no such file; is this the folder of a bundle?")


def test_a_missing_bundle_names_those_there_are(classify) -> None:
    said = classify("images", "--bundle", "bundles/tiny-noise-fp16")
    near = "did you mean bundles/tiny-noise-fp32? bundles/ contains tiny-noise-fp32; name one of them"
    assert (said.code, said.out) == (4, "")
    assert said.last == f"classify: bundles/tiny-noise-fp16: no such bundle; {near}"


def test_without_bundle_and_with_several_it_says_which_there_are(classify, place: Path) -> None:
    make_bundle(place / "bundles" / "another", INPUT)
    said = classify("images")
    assert said.code == 4
    assert said.last == ("classify: no bundle was named; bundles/ contains another, tiny-noise-fp32; name one of them")


def test_one_flipped_bit_is_refused_with_the_files_name(classify, place: Path) -> None:
    file = place / "bundles/tiny-noise-fp32/model.fp32.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    said = classify("images")
    assert (said.code, said.out) == (4, "")
    assert re.fullmatch(
        r"classify: bundles/tiny-noise-fp32/model\.fp32\.onnx: SHA-256 \w{12}…, expected \w{12}…; "
        r"the file is damaged; copy or export the bundle again",
        said.last,
    )


def test_a_manifest_of_format_99_is_refused_in_clear_words(classify, place: Path) -> None:
    change_manifest(place / "bundles/tiny-noise-fp32", format=99)
    said = classify("images")
    where = "bundles/tiny-noise-fp32/bundle.json"
    expected = f"classify: {where}: format 99, but this convexport reads 2, 3.3; update convexport"
    assert (said.code, said.last) == (4, expected)


def test_a_zip_of_the_bundle_answers_the_same(classify, place: Path) -> None:
    with zipfile.ZipFile("tiny.zip", "w") as file:
        for path in sorted((place / "bundles").rglob("*")):
            file.write(path, path.relative_to(place / "bundles"))
    assert classify("images", "--bundle", "tiny.zip").out == classify("images").out


@pytest.mark.parametrize(("method", "number"), [(zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)])
def test_a_zip_entry_of_another_compression_is_one_line_and_is_not_unpacked(
    classify, place: Path, method: int, number: int
) -> None:
    with zipfile.ZipFile("tiny.zip", "w") as file:
        for path in sorted(Path("bundles/tiny-noise-fp32").rglob("*")):
            file.write(path, path.relative_to("bundles"))
        file.writestr("tiny-noise-fp32/notes", bytes(1 << 20), compress_type=method)
    for words in (["images"], ["--info"], ["--verify"], ["--self-test"]):
        said = classify(*words, "--bundle", "tiny.zip")
        assert (said.code, said.out) == (4, "")
        assert said.err == (
            f"classify: tiny.zip: the entry 'tiny-noise-fp32/notes' is compressed by method {number}, expected 0 "
            "(stored) or 8 (deflated); zip the folder again\n"
        )


# Modes


def test_the_self_test_compares_with_the_export_and_names_the_next_command(classify) -> None:
    said = classify("--self-test", "--device", "cpu")
    assert said.code == 0
    *table, totals = said.out.splitlines()
    assert [line.split()[-1] for line in table] == ["result", "ok", "ok"]
    assert totals.startswith("2 of 2 within the limit, 2 with the same label; the median image uses 0.")
    next_command = "classify --bundle bundles/tiny-noise-fp32 IMAGE"
    assert said.last == f"classify: all 2 golden images as at export; next: {next_command}"
    results = [json.loads(line) for line in classify("--self-test", "--format", "jsonl").out.splitlines()]
    assert [result["passed"] for result in results] == [True, True]


def test_a_self_test_that_fails_marks_the_picture_and_ends_with_6(classify, place: Path) -> None:
    manifest = json.loads((place / "bundles/tiny-noise-fp32/bundle.json").read_bytes())
    golden = manifest["golden"]
    golden[1]["probabilities"] = [0.1] * 10
    change_manifest(place / "bundles/tiny-noise-fp32", golden=golden)
    said = classify("--self-test")
    assert said.code == 6
    # What failed comes first.
    assert [line.split()[-1] for line in said.out.splitlines()[:-1]] == ["result", "FAILED", "ok"]
    assert said.last.startswith("classify: 1 of 2 golden images differ from the export; ")


def test_a_bundle_without_golden_images_cannot_be_tested(classify, place: Path) -> None:
    change_manifest(place / "bundles/tiny-noise-fp32", golden=[])
    said = classify("--self-test")
    assert said.code == 4
    assert said.last == "classify: bundles/tiny-noise-fp32: it contains no golden images; export the bundle again"


def test_info_shows_the_manifest_for_people_and_for_programs(classify) -> None:
    said = classify("--info")
    assert said.code == 0
    for fact in (
        "bundle        tiny-noise-fp32",
        "model         tiny, 4,321 parameters",
        "input         12 x 12 RGB: the middle of the image, scaled",
        "labels (fr)   avion, automobile, oiseau, chat, cerf, chien, grenouille, cheval, bateau, camion",
        "accuracy      98.76 % of 10,000 test images, at training",
    ):
        assert fact in said.out.splitlines()
    assert "98.71 %" in said.out
    (line,) = classify("--info", "--format", "jsonl").out.splitlines()
    assert json.loads(line)["name"] == "tiny-noise-fp32"


INFO = """\
bundle        tiny-noise-fp32
model         tiny, 4,321 parameters
input         12 x 12 RGB: the middle of the image, scaled
labels (en)   airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck
labels (fr)   avion, automobile, oiseau, chat, cerf, chien, grenouille, cheval, bateau, camion
trained on    Noise (a random generator)
accuracy      98.76 % of 10,000 test images, at training
checkpoint    SHA-256 0000000000000000000000000000000000000000000000000000000000000000

variant  file               MB  accuracy  agreement  max |Δp|  {head}  by
fp32     model.fp32.onnx  0.02   98.71 %    99.95 %   1.0e-04  {kind}  onnxruntime on cpu: runtime
"""


@pytest.mark.parametrize(
    ("images", "kind", "shown"),
    [
        (10_000, "MNIST test set, all 10,000", "MNIST test set, all 10,000"),
        (2_000, "2,000 of 10,000 of the MNIST test set", "2,000 of 10,000 of the MNIST test set"),
        (359, "digits test set, all 1359", "359 x digits test set, all 1359"),
        (2_000, "Noise, test", "2,000 x Noise, test"),
    ],
)
def test_info_says_once_how_many_images_were_measured(
    classify, place: Path, images: int, kind: str, shown: str
) -> None:
    variants = json.loads((place / "bundles/tiny-noise-fp32/bundle.json").read_bytes())["variants"]
    variants["fp32"]["verifications"][0] |= {"images": images, "images_kind": kind}
    change_manifest(place / "bundles/tiny-noise-fp32", variants=variants)
    said = classify("--info")
    head = f"{'measured on':{'>' if shown[0].isdigit() else '<'}{len(shown)}}"  # numbers stand to the right
    assert (said.code, said.out) == (0, INFO.format(kind=shown, head=head))


def test_verify_reads_every_file_and_names_a_damaged_one(classify, place: Path) -> None:
    bundle = place / "bundles/tiny-noise-fp32"
    listed = json.loads((bundle / "bundle.json").read_bytes())["files"].values()
    size = sum(file["bytes"] for file in listed)
    said = classify("--verify")
    assert (said.code, said.out) == (0, f"bundles/tiny-noise-fp32: 4 files, {size:,} bytes, each as exported\n")
    golden = bundle / "golden/1.png"
    golden.write_bytes(golden.read_bytes()[:-1] + b"\0")
    values = json.loads((bundle / "bundle.json").read_bytes())
    change_manifest(bundle, golden=values["golden"][:1])  # nothing but the check of every file reads it now
    for mode in ("--verify", "--info", "--self-test"):
        said = classify(mode)
        assert (said.code, said.out) == (4, "")
        assert said.last.startswith("classify: bundles/tiny-noise-fp32/golden/1.png: SHA-256 ")
    assert classify("images").out  # its images do not need the golden ones


def test_help_ends_with_examples_and_exit_codes(classify) -> None:
    said = classify("--help")
    assert said.code == 0
    assert "examples:\n  classify cat.png" in said.out
    assert "\n5 device, back end or library missing" in said.out
    assert "\n  CONVEXPORT_THREADS  --threads\n" in said.out


# The device promise


@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--device", "cuda:1", "--backend", "onnxruntime"]])
def test_cuda_where_there_is_none_is_one_line_with_what_mends_it(
    classify, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convexport.runtime import devices

    monkeypatch.setattr(devices.ctypes, "CDLL", functools.partial(_all_but_the_driver, devices.ctypes.CDLL))
    devices.gpus.cache_clear()
    said = classify("images", *arguments)
    devices.gpus.cache_clear()
    assert (said.code, said.out) == (5, "")
    assert said.err == (
        "classify: no GPU was found: NVIDIA's driver (libcuda.so.1) is not installed; "
        "check that nvidia-smi lists a GPU, or leave out the device and back end to use the CPU\n"
    )


def _all_but_the_driver(real: Callable[..., object], name: str, *arguments: object, **options: object) -> object:
    # Other libraries are loaded as ever: one that is refused here stays half imported for the tests that follow.
    if name == "libcuda.so.1":
        raise OSError(f"{name}: cannot open shared object file")
    return real(name, *arguments, **options)


# The installed command


def test_nothing_of_the_training_side_is_loaded_even_where_it_is_installed(place: Path) -> None:
    program = (
        "import sys; from convexport.cli.classify import main; code = main(['images', '--format', 'jsonl']); "
        f"found = sorted(({BANNED!r} | {{'rich'}}) & {{name.split('.')[0] for name in sys.modules}}); "
        "print(code, found, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=place, check=True, timeout=120)
    assert done.stderr.decode().splitlines()[-1] == "0 []"


def test_every_module_of_the_runtime_imports_where_the_training_side_is_missing(place: Path) -> None:
    program = (
        "import importlib, pkgutil, sys\n"
        f"for name in {BANNED!r}: sys.modules[name] = None\n"
        "import convexport.runtime as runtime\n"
        "for module in pkgutil.walk_packages(runtime.__path__, 'convexport.runtime.'):\n"
        "    importlib.import_module(module.name)\n"
        "    print(module.name)\n"
        "from convexport.cli.classify import main\n"
        "raise SystemExit(main(['images/0.png']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=place, check=True, timeout=120)
    assert "convexport.runtime.backends.onnxruntime" in done.stdout.decode()
    assert "Prediction: Cat" in done.stdout.decode()


def test_a_reader_who_has_read_enough_causes_no_complaint(place: Path) -> None:
    for number in range(3, 2000):
        os.link(place / "images/0.png", place / f"images/{number}.png")
    pipe = f"{shlex.join(COMMAND)} images | head -1"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, cwd=place, check=True, timeout=120)
    assert done.stdout.decode().count("\n") == 1
    assert len(done.stderr.decode().splitlines()) == 1


def test_ctrl_c_ends_with_130_and_one_line(place: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Where the tests run in a shell's background, their children would inherit an ignored SIGINT.
    unignored = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([*COMMAND, "-"], cwd=place, preexec_fn=unignored, **pipes) as process:
        assert process.stderr.readline().startswith(b"classify: onnxruntime on ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode().splitlines()) == (130, ["classify: interrupted"])


def test_names_that_are_no_unicode_are_classified_and_shown_escaped(place: Path) -> None:
    (place / "images/0.png").rename(os.fsdecode(b"images/\xff.png"))
    command = [*COMMAND, "images", "--format", "jsonl"]
    done = subprocess.run(command, capture_output=True, cwd=place, check=True, timeout=120)
    names = [json.loads(line)["input"] for line in done.stdout.splitlines()]
    assert names == ["images/1.png", "images/2.png", "images/\\xff.png"]


def test_names_on_standard_input_need_not_be_unicode(place: Path) -> None:
    (place / "images/0.png").rename(os.fsdecode(b"images/\xff.png"))
    # As in a locale like fr_FR.UTF-8; in the C locale Python is lenient by itself.
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [*COMMAND, "-", "--format", "jsonl"]
    names = b"images/\xff.png\nimages/1.png\n"
    done = subprocess.run(command, input=names, capture_output=True, cwd=place, env=strict, check=True, timeout=120)
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == LABELS[:2]


@pytest.mark.parametrize(
    ("closed", "out"), [("<&-", b""), ("2>&-", b"Prediction: Cat\nimages/0.png  cat          73.7 %\n")]
)
def test_a_closed_stdin_or_stderr_is_no_mistake(place: Path, closed: str, out: bytes) -> None:
    inputs = "-" if closed == "<&-" else "images/0.png"
    command = f"{shlex.join(COMMAND)} {inputs} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=place, check=True, timeout=120)
    assert done.stdout == out
    assert b"Traceback" not in done.stderr


def test_a_program_may_put_a_stream_of_text_in_the_place_of_stdout(place: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(["images/0.png", "--quiet"])
    assert (code, out.getvalue()) == (0, "Prediction: Cat\nimages/0.png  cat          73.7 %\n")


def test_the_hint_for_a_file_whose_name_looks_like_an_option_shows_how_to_name_it(classify, place: Path) -> None:
    (place / "images/0.png").rename("-0.png")
    said = classify("-0.png")
    assert (said.code, said.err) == (
        2,
        "classify: option -0.png is not known; for the file of this name, write ./-0.png\n",
    )
    assert classify("./-0.png").code == 0


def test_a_result_that_the_encoding_of_standard_output_lacks_is_escaped() -> None:
    program = "from convexport.cli import terminal; terminal.guard('x', lambda: terminal.result('max |Δp| é') or 0)"
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=latin, check=True, timeout=60)
    assert done.stdout == b"max |\\u0394p| \xe9\n"


@pytest.mark.parametrize("arguments", [["images/0.png"], ["--doctor"]])
def test_onnx_runtimes_telemetry_stays_off(place: Path, arguments: list[str]) -> None:
    home = place / "home"
    home.mkdir()
    # Its wheels from 1.29 on write an identifier to the home folder when they start to report; not where CI is set.
    bare = {name: value for name, value in os.environ.items() if name not in {"CI", "XDG_CACHE_HOME"}}
    environment = {**bare, "HOME": str(home)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([*COMMAND, *arguments], capture_output=True, cwd=place, env=environment, check=True, timeout=120)
    assert list(home.rglob("*")) == []
