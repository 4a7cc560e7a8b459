"""What a back end answers is looked at before anybody believes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from convexport.runtime import BackendError, BundleError, Classifier, FakeBackend
from convexport.runtime.manifest import Input
from helpers.bundles import make_bundle, pictures

INPUT = Input(height=12, width=12, channels=3)
WHO = "fake on cpu in fp32 returned "


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", INPUT)


def even(images: np.ndarray) -> np.ndarray:
    return np.full((len(images), 10), 0.1, np.float32)


def with_first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Answers that sum to 1, the first two of them -value and value."""

    def answer(images: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(images), 10), np.float32)
        rows[:, :3] = (-value, value, 1)
        return rows

    return answer


WRONG: dict[str, tuple[Callable[[np.ndarray], object], str]] = {
    "below 0": (with_first(1), "probabilities from -1 to 1, expected 0 to 1"),
    "above 1": (lambda images: even(images) * 840, "probabilities from 84 to 84, expected 0 to 1"),
    "sum": (lambda images: even(images) * 2, "probabilities that sum to 2, expected 1"),
    "logits that look like it": (lambda images: even(images) / 2, "probabilities that sum to 0.5, expected 1"),
    "rows": (lambda images: even(images).repeat(2, axis=0), "an array [4, 10], expected [2, 10]"),
    "no row": (lambda images: even(images)[:0], "an array [0, 10], expected [2, 10]"),
    "axes": (lambda images: even(images)[:, :, None], "an array [2, 10, 1], expected [2, 10]"),
    "one axis": (lambda images: even(images).ravel(), "an array [20], expected [2, 10]"),
    "integers": (lambda images: np.ones((2, 10), np.int64), "int64 values, expected an array of float32"),
    "list": (lambda images: [[0.1] * 10] * 2, "a list, expected an array of float32"),
    "nothing": (lambda images: None, "a NoneType, expected an array of float32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_batch_of_probabilities_is_an_error_that_names_the_back_end(bundle: Path, name: str) -> None:
    answer, message = WRONG[name]
    images = pictures(2, INPUT)
    with Classifier(bundle, backend=FakeBackend(10, answer)) as classifier:
        for use in (lambda: list(classifier.classify(images)), lambda: classifier.probabilities(images)):
            with pytest.raises(BackendError) as caught:
                use()
            assert str(caught.value) == WHO + message
        with pytest.raises(BackendError, match=rf"^{WHO}"):
            classifier.self_test()


class Miscounting(FakeBackend):
    """Leaves the answers to the last `fewer` batches out, or adds one."""

    def __init__(self, change: int) -> None:
        super().__init__(10, even)
        self.change = change

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        answers = [self.run(images) for images in batches]
        yield from answers[:-1] if self.change < 0 else [*answers, answers[-1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [(-1, "no answer to 1 batch"), (1, "an answer without a batch")],
)
def test_more_or_fewer_answers_than_batches_are_an_error(bundle: Path, change: int, message: str) -> None:
    with Classifier(bundle, backend=Miscounting(change), batch=1) as classifier:
        with pytest.raises(BackendError) as caught:
            list(classifier.classify(pictures(3, INPUT)))
        assert str(caught.value) == WHO + message


def test_rounding_of_fp16_passes(bundle: Path) -> None:
    half = np.random.default_rng(0).dirichlet(np.ones(10), 64).astype(np.float16).astype(np.float32)
    with Classifier(bundle, backend=FakeBackend(10, lambda images: half[: len(images)])) as classifier:
        assert np.array_equal(classifier.probabilities(pictures(64, INPUT)), half)


def test_the_answer_of_another_network_is_the_bundles_fault(bundle: Path) -> None:
    with Classifier(bundle, backend=FakeBackend(11)) as classifier, pytest.raises(BundleError) as caught:
        classifier.self_test()
    assert str(caught.value) == (
        "tiny: the network returns 11 probabilities, the manifest has 10 labels; export it again"
    )
