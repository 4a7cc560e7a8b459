"""The roof: decoding and records on all cores, and the network behind or beside them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from convexport.runtime.bundle import open_bundle
from convexport.runtime.roof import Roof, roof
from helpers.bundles import make_bundle

FILES = Roof(decode_us=150.0, record_us=50.0, cores=2)


def test_on_a_cpu_the_network_takes_the_same_cores_and_on_a_gpu_it_runs_beside_them() -> None:
    assert FILES.images_per_second(10_000.0, "cpu") == pytest.approx(5_000.0)
    assert FILES.images_per_second(10_001.0, "cuda") == pytest.approx(10_000.0)
    assert FILES.images_per_second(400.0, "cuda") == 400.0


def test_it_is_measured_with_the_golden_images(tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path / "tiny")) as bundle:
        found = roof(bundle)
        assert found is not None
        assert found.decode_us > 0
        assert found.record_us > 0


def test_a_bundle_without_golden_images_has_none(tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path / "tiny")) as bundle:
        bundle.manifest = msgspec.structs.replace(bundle.manifest, golden=[])
        assert roof(bundle) is None
