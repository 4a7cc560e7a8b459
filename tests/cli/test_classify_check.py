"""`classify --check`, `--sure` and `--keep-unsure`: what a person types and gets back."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from convexport.cli.classify import main
from convexport.runtime import manifest as m
from convexport.runtime.classifier import Classifier
from helpers.bundles import ENGLISH, make_bundle, pictures, png

INPUT = m.Input(height=12, width=12, channels=3)
PROMISE = m.Promise(
    promised=0.98,
    threshold=0.7,
    chosen=m.Counted(images=1000, answered=500, right=496),
    checked=m.Counted(images=1000, answered=510, right=505),
    weak=(3,),
)
COUNT = 200


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a bundle that promises 98 %, and its images in folders of what it answers."""
    bundle = make_bundle(tmp_path / "bundles" / "tiny-noise-fp32", INPUT)
    rewritten(bundle, promises=(PROMISE,))
    images = pictures(COUNT, INPUT)
    with Classifier(bundle) as classifier:
        answers = classifier.probabilities(images).argmax(axis=1)
    for number, (image, answer) in enumerate(zip(images, answers, strict=True)):
        folder = tmp_path / "labeled" / ENGLISH[answer]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(png(image))
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(images[number]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rewritten(bundle: Path, **changes: object) -> None:
    """Changes what the gate measured on fp32."""
    path = bundle / "bundle.json"
    manifest, _ = m.decode(path.read_bytes())
    variant = manifest.variants["fp32"]
    found = msgspec.structs.replace(variant.verification, **changes)
    variant = msgspec.structs.replace(variant, verifications=(found,))
    path.write_bytes(m.encode(msgspec.structs.replace(manifest, variants={"fp32": variant})))


@pytest.fixture
def classify(place: Path, capsysbinary: pytest.CaptureFixture[bytes]):
    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main([*arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsysbinary.readouterr()
        return code, captured.out.decode(), captured.err.decode()

    return run


def last(text: str) -> str:
    return text.splitlines()[-1]


def shift(place: Path) -> None:
    """Every class folder takes the name of the next class."""
    for name in ENGLISH:
        if (place / "labeled" / name).exists():
            (place / "labeled" / name).rename(place / "labeled" / f"{name}.old")
    for index, name in enumerate(ENGLISH):
        old = place / "labeled" / f"{name}.old"
        if old.exists():
            old.rename(place / "labeled" / ENGLISH[(index + 1) % 10])


# --check


def test_a_check_says_how_many_are_right_and_that_it_is_as_exported(classify) -> None:
    code, out, _ = classify("--check", "labeled")
    assert code == 0
    assert out.splitlines()[:3] == [
        "200 of 200 images right: 100.00%, between 98.17% and 100.00% with 95% confidence",
        "export: 1,974 of 2,000 right, 98.71% (Noise, test, onnxruntime on cpu)",
        "not significantly worse than the export (p = 1)",
    ]


def test_shifted_labels_are_worse_and_end_with_6(classify, place: Path) -> None:
    shift(place)
    code, out, err = classify("--check", "labeled", "--format", "json")
    assert code == 6
    assert last(err) == (
        "classify: accuracy 0.00% on 200 images, significantly worse than at export; "
        "look at the worst images, and see whether classify --self-test passes"
    )
    found = json.loads(out)
    assert (found["verdict"], found["right"], found["images"]) == ("worse", 0, 200)
    probabilities = [one["probability"] for one in found["worst"]]
    assert len(probabilities) == 20
    assert probabilities == sorted(probabilities, reverse=True)


def test_few_images_prove_little_and_the_words_say_how_little(classify, place: Path) -> None:
    files = sorted(place.glob("labeled/*/*.png"))
    for file in files[30:]:
        file.unlink()
    code, out, _ = classify("--check", "labeled")
    assert code == 0
    assert out.splitlines()[3] == (
        "30 images prove little: an accuracy of 91% would pass every second such check; use some hundred images"
    )


def table(place: Path, text: str) -> str:
    (place / "table.csv").write_text(text, encoding="utf-8")
    return "table.csv"


def test_a_csv_names_classes_by_label_in_any_language_or_by_index(classify, place: Path) -> None:
    rows = "file,label,index\nimages/0.png,cat,\nimages/1.png,camion,\nimages/2.png,,0\nimages/0.png,,\n"
    code, out, _ = classify("--check", table(place, rows), "--format", "jsonl")
    found = json.loads(out)
    assert (code, found["right"], found["images"], found["unlabeled"]) == (0, 3, 3, 1)
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,kind\n", "table.csv: expected the columns file and label, or file and index, found file, kind"),
        ("file,label\nimages/0.png,catt\n", "table.csv, line 2: class 'catt' is not known; did you mean 'cat'?"),
        ("file,index\nimages/0.png,10\n", "table.csv, line 2: index '10', expected a number from 0 to 9"),
        ("file,label\nimages/0.png,\n", "table.csv: no labeled image, 1 without a label"),
    ],
)
def test_a_csv_that_names_no_class_is_one_line(classify, place: Path, text: str, message: str) -> None:
    code, out, err = classify("--check", table(place, text))
    assert (code, out) == (2, "")
    assert last(err).startswith(f"classify: {message}")


def test_a_name_that_two_classes_have_is_refused_and_their_indices_are_not(classify, place: Path) -> None:
    labels = ("crane", "truck", "crane")
    make_bundle(place / "cranes", INPUT, labels={"en": labels})
    code, _, err = classify("--bundle", "cranes", "--check", table(place, "file,label\nimages/0.png,crane\n"))
    assert code == 2
    assert last(err) == (
        "classify: table.csv, line 2: 2 classes are called 'crane'; "
        "give it by its number, in a CSV with the columns file and index"
    )
    code, out, _ = classify(
        *("--bundle", "cranes", "--format", "json", "--check"), table(place, "file,index\nimages/0.png,2\n")
    )
    assert json.loads(out)["classes"][0]["index"] == 2


def test_images_that_cannot_be_read_are_counted_and_end_with_3(classify, place: Path) -> None:
    (place / "labeled" / "cat" / "broken.png").write_bytes(b"no image")
    code, out, err = classify("--check", "labeled", "--format", "json")
    assert (code, json.loads(out)["failed"]) == (3, 1)
    assert last(err) == "classify: 1 of 201 images could not be read"


def test_the_page_holds_its_pictures_and_fetches_nothing(classify, place: Path) -> None:
    shift(place)
    first, second, *_ = sorted((place / "labeled").iterdir())
    first.rename(second / "<script>")
    classify("--check", "labeled", "--page", "check.html")
    page = (place / "check.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 20
    assert "significantly" not in page
    assert "Worse than the export" in page
    assert "<script" not in page
    assert "http" not in page


def test_a_bundle_without_a_measured_accuracy_compares_nothing(classify, place: Path) -> None:
    rewritten(place / "bundles/tiny-noise-fp32", accuracy=None)
    shift(place)
    code, out, _ = classify("--check", "labeled")
    assert code == 0
    assert out.splitlines()[1] == "the export measured no accuracy, so there is nothing to compare with"


def test_with_a_promise_a_check_counts_the_sure_answers_too(classify, place: Path) -> None:
    rows = "file,label\nimages/0.png,cat\nimages/1.png,truck\nimages/2.png,cat\n"
    _, out, _ = classify("--check", table(place, rows), "--sure", "0.98")
    assert out.splitlines()[1] == "1 of 2 sure answers right (50.00%)"


# --sure


def test_a_record_says_whether_it_keeps_the_promise(classify) -> None:
    code, out, err = classify("images", "--sure", "0.98", "--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(record["probability"] >= 0.7, record["sure"]) for record in records] == [
        (True, True),
        (False, False),
        (True, True),
    ]
    assert [len(record["top"]) for record in records] == [3, 3, 3]
    assert (
        "classify: sure from a probability of 0.7: at export 505 of 510 such answers were right (99.0%), and 51% of "
        "the images had one; less often right: cat; images of unknown objects can get one, too"
    ) in err.splitlines()


def test_the_text_marks_what_is_not_sure_and_shows_its_candidates(classify) -> None:
    _, out, _ = classify("images", "--sure", "0.98")
    assert [line.endswith("(not sure)") for line in out.splitlines()] == [False, True, False]
    assert out.splitlines()[1].split()[1:7:3] == ["truck", "cat"]
    _, out, _ = classify("images/1.png", "--sure", "0.98", "--lang", "fr")
    assert out.splitlines()[0] == "Pas sûr, peut-être: Camion"


def test_the_csv_has_a_column_more_and_a_failure_leaves_it_empty(classify) -> None:
    _, out, _ = classify("images", "gone.png", "--sure", "0.98", "--format", "csv", "--top", "1")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["sure"] for row in rows] == ["true", "false", "true", ""]
    assert rows[3]["error_kind"] == "missing"


def test_without_the_option_nothing_is_said_of_it(classify) -> None:
    for form in ("text", "jsonl", "csv"):
        _, out, err = classify("images", "--format", form)
        assert "sure" not in out + err


def test_a_share_that_is_not_promised_names_those_that_are(classify) -> None:
    code, out, err = classify("images", "--sure", "0.97")
    assert (code, out) == (2, "")
    assert last(err) == "classify: tiny-noise-fp32 in fp32: the share 0.97 is not promised; choose one of 0.98"


def test_a_bundle_without_promises_says_how_to_get_some(classify, place: Path) -> None:
    rewritten(place / "bundles/tiny-noise-fp32", promises=())
    code, out, err = classify("images", "--sure", "0.98")
    assert (code, out) == (4, "")
    assert last(err) == (
        "classify: tiny-noise-fp32 in fp32: the bundle promises no share of right answers, asked for 0.98; "
        "export it again with a few thousand labeled test images"
    )


# --keep-unsure


def test_unsure_pictures_are_kept_and_once_labeled_can_be_checked(classify, place: Path) -> None:
    code, _, err = classify("images", "--sure", "0.98", "--keep-unsure", "kept")
    assert code == 0
    assert last(err) == "classify: 1 unsure images kept in kept"
    assert (place / "kept/1.png").read_bytes() == (place / "images/1.png").read_bytes()
    filled = (place / "kept/unsure.csv").read_text().replace("1.png,,", "1.png,truck,", 1)
    (place / "kept/unsure.csv").write_text(filled)
    _, out, _ = classify("--check", "kept/unsure.csv", "--format", "json")
    assert (json.loads(out)["right"], json.loads(out)["images"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("images", "--keep-unsure", "kept"), "--keep-unsure needs --sure"),
        (("images", "--at-most", "3"), "--at-most needs --keep-unsure"),
        (("images", "--page", "a.html"), "--page needs --check"),
        (("images", "--sure", "0.98", "--keep-unsure", "k", "--at-most", "0"), "--at-most 0: expected 1 or more"),
    ],
)
def test_an_option_that_means_nothing_alone_is_wrong_use(classify, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = classify(*arguments)
    assert (code, last(err)) == (2, f"classify: {message}")


def test_the_pictures_of_the_fixture_fill_several_classes(place: Path) -> None:
    sizes = np.array([len(list(folder.iterdir())) for folder in (place / "labeled").iterdir()])
    assert (sizes > 0).sum() >= 5
