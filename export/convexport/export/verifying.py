"""The images that an export is verified and calibrated with, how many of them, and what they say of what is stated."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from convexport.export import diagnosis, gate, labels, measures, own_images, record, samples
from convexport.export.diagnosis import Diagnosis, Labeled
from convexport.export.measures import Reference
from convexport.export.options import ExportOptions
from convexport.export.precisions import BASE
from convexport.export.sources.checkpoint import labeled_set
from convexport.export.sources.foreign import UNKNOWN
from convexport.export.sources.network import Network
from convexport.export.sources.opening import open_network
from convexport.runtime.errors import DatasetError, UsageError
from convexport.runtime.text import counted
from convexport.training.datasets import Dataset

Progress = Callable[[str], None]
# As many images as the origin answers in this time, and no more than these.
BUDGET_SECONDS = 120.0
MOST_IMAGES, FEWEST_IMAGES = 2000, 64
_TIMED_IMAGES, _TIMED_ROUNDS = 4, 3


def sample(
    network: Network, dataset: Dataset | None, options: ExportOptions, progress: Progress
) -> tuple[samples.Sample, Dataset | None]:
    """The images the gate looks at, and the data set if its test split could be read."""
    facts = network.facts
    wanted = options.verify_images or affordable(network, progress)
    if options.verify_data is not None:
        found = own_images.sample_of(own_images.labeled_files(options.verify_data, facts, wanted), facts.input)
        progress(f"images      {found.kind}")
        return found, dataset
    reason = f"no data set is known for {facts.name}"
    if dataset is not None:
        own = facts.classes["en"]
        if options.source.dataset is not None:  # a data set that was named and does not fit is an error
            labels.matched(dataset.name, dataset.classes["en"], own)
        try:
            classes = labels.matched(dataset.name, dataset.classes["en"], own)
            found = samples.from_test_set(dataset.test, classes, dataset.title, wanted)
        except DatasetError as error:
            if options.require_labels:
                raise
            reason = str(error)
        else:
            progress(f"images      {found.kind}")
            return found, dataset
    if options.require_labels and dataset is not None:
        raise DatasetError(reason, "leave out --verify-images to compare on photographs without labels")
    asked = options.verify_images if options.verify_images not in (None, sys.maxsize) else None  # "all" is not a number
    found = samples.from_photographs(facts.input, asked)
    progress(f"images      {found.kind}; accuracy is not measured: {reason}")
    return found, None


def own_golden_images(network: Network, sample: samples.Sample, options: ExportOptions) -> samples.Sample | None:
    """What a person has given for golden images: a folder of images, else the labeled ones of the gate."""
    if options.witnesses is not None:
        return own_images.unlabeled(options.witnesses, network.facts)
    return sample if options.verify_data is not None else None


def affordable(network: Network, progress: Progress) -> int:
    """How many images the origin answers in the time that each variant has; a line says so where that limits them."""
    size = network.facts.input
    images = np.zeros((_TIMED_IMAGES, size.height, size.width, size.channels), np.uint8)
    times = []
    for _ in range(_TIMED_ROUNDS):
        start = time.perf_counter()
        network.reference(images)
        times.append(time.perf_counter() - start)
    seconds = min(times) / len(images)
    count = max(int(BUDGET_SECONDS / seconds / 100) * 100, FEWEST_IMAGES)
    if count >= MOST_IMAGES:
        return MOST_IMAGES
    progress(
        f"budget      {BUDGET_SECONDS:.0f} s for each variant, {1000 * seconds:.0f} ms an image: at most {count:,} "
        "images; --verify-images takes another number, or all"
    )
    return count


def calibration_images(
    network: Network, dataset: Dataset | None, options: ExportOptions, count: int
) -> tuple[NDArray[np.uint8], str]:
    """The images that int8 is calibrated on. Raises `DatasetError` if there are none."""
    if options.calibration_data is not None:
        images = own_images.without_labels(options.calibration_data, network.facts.input, count)
        return images, f"{counted(len(images), 'image')} of {options.calibration_data.name}"
    if dataset is None:
        raise DatasetError(
            "int8 is calibrated on training images, and none were found",
            "name a folder of such images with --calibration-data"
            + ("" if network.facts.dataset.name == UNKNOWN else ", or the folder of the data sets with --data"),
        )
    train = dataset.train
    return train.images[samples.stratified(train.labels, count)], f"{dataset.title} training set"


def check_labels(network: Network, expected: Reference, options: ExportOptions, progress: Progress) -> None:
    """Holds the origin against a person's labeled images before anything is built.

    Raises:
        gate.Refusal: It is no better than chance on them, or below what is stated; with the causes that were tried.
    """
    if options.verify_data is None or expected.sample.truth is None:
        return
    held = record.verify_network(network, expected, "")
    failed = [one for one in held if not one.passed and one.name in {record.ABOVE_CHANCE, record.STATED}]
    if not failed:
        return
    progress(f"images      {failed[0].name}: {failed[0].value:.2%}, expected {failed[0].limit:.2%} or more")
    found = diagnosis.diagnose(
        network, _labeled(network, expected.sample, options), bgr=_bgr(options), progress=progress
    )
    result = gate.GateResult({BASE: (measures.of_origin(expected, held),)}, {}, {}, {})
    result.refuse(found)


def diagnose(options: ExportOptions, progress: Progress = lambda line: None) -> Diagnosis:
    """Which preprocessing and order of labels fit labeled images best.

    Args:
        options: What is exported, and the labeled images; precisions do not matter.
        progress: Is told what is tried.

    Raises:
        UsageError: There are no labeled images.
        DatasetError: They may have several labels each.
    """
    network = open_network(options.source)
    for remark in network.remarks:
        progress(remark)
    dataset = None if options.verify_data else labeled_set(network.facts, options.source.dataset, options.data)
    found, _ = sample(network, dataset, options, progress)
    if found.labels is not None:
        raise DatasetError("causes are told apart by images with one label, and these may have several")
    if found.truth is None:
        raise UsageError("--diagnose needs labeled images", "name them with --verify-data")
    return diagnosis.diagnose(network, _labeled(network, found, options), bgr=_bgr(options), progress=progress)


def _labeled(network: Network, found: samples.Sample, options: ExportOptions) -> Labeled:
    """The labeled images at their own size, where they have files: only so can they be framed otherwise."""
    assert found.truth is not None
    if options.verify_data is None:
        return Labeled(list(found.images), found.truth)
    files = own_images.labeled_files(options.verify_data, network.facts, len(found))
    return Labeled(files.files, files.truth)


def _bgr(options: ExportOptions) -> bool:
    return options.source.foreign is not None and options.source.foreign.bgr
