"""A graph that takes batches of one size only: every back end fills smaller ones up, and nobody sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convexport.runtime import Classifier
from convexport.runtime.manifest import Input
from helpers.bundles import make_bundle, pictures

SIZE = Input(height=12, width=12, channels=3)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_fixed_batch_gives_the_answers_of_a_dynamic_one_for_any_number_of_images(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    plain, fixed = make_bundle(tmp_path / "plain"), make_bundle(tmp_path / "fixed", batch=4)
    images = pictures(11, SIZE, seed=3)
    with Classifier(plain, backend=name, device="cpu") as one, Classifier(fixed, backend=name, device="cpu") as other:
        for count in (1, 3, 4, 5, 11):
            np.testing.assert_allclose(
                other.probabilities(images[:count]), one.probabilities(images[:count]), atol=1e-6
            )
        assert other.backend.run(images[:0]).shape == (0, 10)
        assert all(result.passed for result in other.self_test())
        assert len(list(other.classify(list(images)))) == 11
