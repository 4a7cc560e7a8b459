"""The report as a file: whole, self-contained, the same bytes each time, for every network and awkward class names."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from convexport.training import evaluate, models, recipes, report
from convexport.training.report import charts, few_pixels, rendering, sections
from convexport.training.report.report import duration, render
from convexport.training.report.sections import percent
from helpers.report_inputs import lenet5_on_digits, lenet5_page, one_thread, untrained


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def inputs() -> report.ReportInputs:
    return lenet5_on_digits()


@pytest.fixture(scope="module")
def page() -> str:
    return lenet5_page()


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def shown(page: str) -> str:
    """The page less its program, its styles and the bytes of its images: what a reader or the program is given."""
    without = re.sub(r"<style.*?</style>|<script>.*?</script>", "", page, flags=re.DOTALL)
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", re.sub(r'(?:class|aria-label)="[^"]*"', "", without))


def test_the_report_appears_whole_and_its_bytes_repeat(inputs: report.ReportInputs, page: str, tmp_path: Path) -> None:
    report.write_report(tmp_path / "report.html", inputs)
    assert (tmp_path / "report.html").read_bytes() == page.encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert len(page) < 4_000_000


def test_nothing_in_the_report_points_outside_it(page: str) -> None:
    assert re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*", page) == []
    assert re.findall(r"url\((?!data:)[^)]*", page) == []
    assert "http" not in re.sub(r'http-equiv="|data:[^")]*', "", page)


def test_every_count_of_the_confusion_matrix_is_there_and_opens_its_own_pictures(
    inputs: report.ReportInputs, page: str
) -> None:
    counts = evaluate.confusion(inputs.test_logits, inputs.test.labels)
    shown = {
        tuple(map(int, cell.split(","))): int(count)
        for cell, count in re.findall(r'data-cell="([\d,]+)" data-count="(\d+)"', page)
    }
    assert shown == {(row, column): counts[row, column] for row, column in np.argwhere(counts)}
    data = data_of(page)
    predicted = inputs.test_logits.argmax(axis=1)
    for (row, column), count in shown.items():
        behind = [data["pictures"][place] for place in data["cells"][f"{row},{column}"]]
        assert 0 < len(behind) <= count
        assert all(true == row and top[0][0] == column == predicted[index] for index, true, top in behind)


def test_the_most_confident_mistakes_are_mistakes_in_falling_order(page: str) -> None:
    section = page[page.index("The most confident mistakes") : page.index('<section id="confidence">')]
    places = [int(place) for place in re.findall(r'data-picture="(\d+)"', section)]
    mistakes = [data_of(page)["pictures"][place] for place in places]
    assert mistakes
    assert all(top[0][0] != true for _, true, top in mistakes)
    assert section.count('class="card wrong"') == len(mistakes)
    confidences = [top[0][1] for _, _, top in mistakes]
    assert confidences == sorted(confidences, reverse=True)


def test_the_hard_quiz_has_the_pictures_with_the_smallest_margins(inputs: report.ReportInputs, page: str) -> None:
    probabilities = np.sort(evaluate.softmax(inputs.test_logits, inputs.temperature), axis=1)
    margins = probabilities[:, -1] - probabilities[:, -2]
    data = data_of(page)
    hard = {data["pictures"][place][0] for place in data["quiz"]["hard"]}
    assert hard == set(np.argsort(margins, kind="stable")[: len(hard)].tolist())
    assert len(set(data["quiz"]["random"])) == 60


def test_the_sprite_sheet_holds_the_very_pixels_of_the_pictures(inputs: report.ReportInputs) -> None:
    images = inputs.test.images[:7]
    sheet = rendering.sprite(images)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2]))))
    assert (sheet.columns, sheet.rows) == (3, 3)
    for index, picture in enumerate(images):
        top, left = 28 * (index // 3), 28 * (index % 3)
        assert np.array_equal(pixels[top : top + 28, left : left + 28], picture[..., 0])
    assert [sheet.position(index) for index in (0, 4, 8)] == [
        "0.0000% 0.0000%",
        "50.0000% 50.0000%",
        "100.0000% 100.0000%",
    ]


@pytest.mark.parametrize("model", ["softmax", "mlp", "cnn-mnist", "cnn-fashion", "cnn-cifar10", "cnn-keras", "vgg11"])
def test_every_network_gets_its_report(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The search is the slow part, and has tests of its own.
    monkeypatch.setattr(sections, "FOOLED", 0 if model == "vgg11" else 1)
    page = render(untrained(model, images=12))
    dense = model in {"softmax", "mlp"}
    assert ("This network has no convolution" in page) is dense
    assert ("Sobel, vertical edges" in page) is not dense
    assert "No training history came with this network." in page
    assert re.findall(r"\b(?:nan|NaN|inf|Infinity|None)\b", shown(page)) == []


def test_class_names_are_text_and_never_markup() -> None:
    inputs = untrained("softmax", images=30)
    names = ("</script><script>alert(1)</script>", '"><img src=x>', *"23456789")
    inputs = replace(inputs, header=msgspec.structs.replace(inputs.header, classes={"en": names}))
    page = render(inputs)
    assert page.count("<script") == 2
    assert "<img" not in page
    assert data_of(page)["classes"] == list(names)


def test_a_network_without_mistakes_and_one_without_a_right_answer_get_reports() -> None:
    inputs = untrained("softmax", images=30)
    right = (np.eye(10)[inputs.test.labels] * 9).astype(np.float32)
    page = render(replace(inputs, test_logits=right))
    assert "It made no mistake on these test images." in page
    assert "100.0 %</strong> of 30 test images classified correctly" in page
    assert 'id="fooling"' not in render(replace(inputs, test_logits=-right))


@pytest.mark.parametrize(("share", "shown"), [(0.9912, "99.1 %"), (1.0, "100.0 %"), (0.9999, "99.9 %"), (0.0, "0.0 %")])
def test_nothing_but_certainty_is_shown_as_certain(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_a_picture_named_with_near_certainty_is_not_shown_as_certain() -> None:
    inputs = untrained("softmax", images=30)
    logits = (np.eye(10)[inputs.test.labels] * 13).astype(np.float32)  # 99.998 %
    page = render(replace(inputs, test_logits=logits))
    assert {top[0][1] for _, _, top in data_of(page)["pictures"]} == {999}
    assert '<span class="small">100.0 %' not in page


def test_pictures_that_withstand_the_search_count_among_those_it_was_tried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = untrained("softmax", images=30)
    inputs = replace(inputs, test_logits=(np.eye(10)[inputs.test.labels] * 9).astype(np.float32))
    counts = iter([1, 2, 3, 4, None, None, None, None] + [2] + [None] * 7)

    def fool(network: object, image: np.ndarray, *arguments: object) -> few_pixels.Fooling:
        count = next(counts)
        return few_pixels.Fooling(image, ((0, 0),) * (count or 32), count is not None, 1)

    monkeypatch.setattr(few_pixels, "fool", fool)
    assert "<strong>4 pixels</strong> of 28 x 28 was enough for half of the images here." in render(inputs)
    assert "No change of up to 32 pixels fooled it on most of these images." in render(inputs)


def test_a_recipe_without_augmentation_shows_none() -> None:
    inputs = untrained("softmax", images=30)
    described = recipes.find("lenet5", "mnist", "quick").describe()
    page = render(replace(inputs, header=msgspec.structs.replace(inputs.header, recipe=described)))
    assert "<dt>augmentation</dt><dd>none</dd>" in page


def test_a_recipe_of_version_0_1_is_shown_under_todays_keys() -> None:
    inputs = untrained("softmax", images=30)
    header = msgspec.structs.replace(inputs.header, recipe={"optimiser": "muon"})
    page = render(replace(inputs, header=header))
    assert "<dt>optimizer</dt><dd>muon</dd>" in page
    assert "optimiser" not in page


def test_durations_are_for_people() -> None:
    assert [duration(value) for value in (4.24, 59.7, 75, 3660)] == [
        "4.2 s",
        "1 min 0 s",
        "1 min 15 s",
        "1 h 1 min",
    ]


def test_few_pixels_fool_the_network_and_each_is_needed(inputs: report.ReportInputs) -> None:
    right = np.flatnonzero(inputs.test_logits.argmax(axis=1) == inputs.test.labels)[14:24]
    normalization = inputs.header.normalization
    for index in right:
        image, label = inputs.test.images[index], int(inputs.test.labels[index])
        found = few_pixels.fool(inputs.network, image, label, normalization)
        assert found.fooled
        assert set(found.pixels) == set(map(tuple, np.argwhere((found.changed != image).any(axis=2)).tolist()))
        assert evaluate.predict(inputs.network, found.changed[None], normalization).argmax() != label
        restored = np.repeat(found.changed[None], len(found.pixels), axis=0)
        for trial, (row, column) in zip(restored, found.pixels, strict=True):
            trial[row, column] = image[row, column]
        assert (evaluate.predict(inputs.network, restored, normalization).argmax(axis=1) == label).all()


def test_a_search_that_gives_up_says_so_and_keeps_its_bounds(inputs: report.ReportInputs) -> None:
    best = int(inputs.test_logits.max(axis=1).argmax())
    label = int(inputs.test_logits[best].argmax())
    search = few_pixels.Search(candidates=5, pixels=1)
    found = few_pixels.fool(inputs.network, inputs.test.images[best], label, inputs.header.normalization, search)
    assert (found.fooled, len(found.pixels), found.passes) == (False, 1, 1 + 5 + 1)


def test_edge_filters_are_prewitt_and_sobel_and_answer_to_their_own_edges() -> None:
    filters = rendering.edge_filters(3)
    assert (filters["Prewitt, horizontal edges"] * 6).tolist() == [[1, 1, 1], [0, 0, 0], [-1, -1, -1]]
    assert (filters["Sobel, vertical edges"] * 8).tolist() == [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    assert (rendering.edge_filters(5)["Sobel, horizontal edges"][0] * 96).tolist() == [1, 4, 6, 4, 1]
    image = np.zeros((8, 8, 1), np.uint8)
    image[4:] = 255  # one horizontal edge
    white = 247
    maps = rendering.edge_maps(image, filters)
    assert [bool((one != white).any()) for one in maps] == [True, False, True, False]


def test_feature_maps_are_the_first_convolution_of_the_normalized_picture(inputs: report.ReportInputs) -> None:
    image = inputs.test.images[0]
    maps = rendering.feature_maps(inputs.network, image, inputs.header.normalization)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    mean, std = inputs.header.normalization.mean[0], inputs.header.normalization.std[0]
    first = next(module for module in inputs.network.modules() if isinstance(module, torch.nn.Conv2d))
    with torch.no_grad():
        answers = first((pixels - mean) / std)[0].numpy()
    expected = np.stack([rendering.diverging(answer) for answer in answers])
    assert maps.shape == (6, 28, 28, 3)
    assert np.abs(maps.astype(int) - expected).max() <= 1
    with pytest.raises(ValueError, match="the network's first layer is not a convolution"):
        rendering.feature_maps(models.build("softmax"), image, inputs.header.normalization)


def test_a_kernel_that_is_an_edge_filter_is_recognized() -> None:
    network = models.build("cnn-fashion")
    sobel = rendering.edge_filters(3)["Sobel, vertical edges"]
    with torch.no_grad():
        network[0].weight[5, 0] = torch.from_numpy(sobel)
    layer = rendering.first_layer(network, 1)
    assert layer is not None
    assert layer.kernels
    assert layer.edges[5].tolist() == pytest.approx([0.0, 1.0])


def test_a_line_chart_has_its_points_where_the_values_are() -> None:
    axis = charts.Axis("loss", 0.0, 1.0)
    svg = charts.line_chart("Loss <1>", {"training": [1.0, float("nan"), 0.0]}, [1, 2, 3], axis)
    assert 'aria-label="Loss &lt;1&gt;"' in svg
    assert '<polyline class="line line-0" points="52.0,14.0 398.0,220.0"/>' in svg
    assert "training, epoch 3: 0" in svg


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1e-9, 2e-9], [3.0, 40_000.0]])
def test_an_axis_has_a_few_round_ticks_in_its_range(values: list[float]) -> None:
    axis = charts.axis_over("loss", values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(axis.low - 1e-12 <= tick <= axis.high * (1 + 1e-9) for tick in ticks)
    assert {f"{step:.1e}"[:3] for step in np.diff(ticks)} <= {"1.0", "2.0", "2.5", "5.0"}


def test_the_validation_figures_are_left_out_where_there_are_none() -> None:
    inputs = untrained("softmax", images=30)
    empty = np.zeros((0, 10), np.float32)
    page = render(replace(inputs, validation_logits=empty, validation_labels=np.zeros(0, np.int64)))
    assert "validation (fitted here)" not in page
    assert '<th scope="row">test</th>' in page


def test_color_pictures_stay_small_and_true() -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    channels = [np.broadcast_to(ramp[:, None], (32, 32)), np.broadcast_to(ramp, (32, 32))]
    images = np.stack([np.stack([*channels, np.full((32, 32), blue, np.uint8)], axis=2) for blue in range(64)])
    sheet = rendering.sprite(images)
    assert sheet.uri.startswith("data:image/jpeg;base64,")
    data = base64.b64decode(sheet.uri.partition(",")[2])
    assert len(data) < 600 * len(images)
    pixels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert np.abs(pixels[:32, :32] - images[0]).max() < 24


def test_a_sheet_of_many_noisy_color_pictures_is_written() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    assert rendering.sprite(noise).columns == 15
