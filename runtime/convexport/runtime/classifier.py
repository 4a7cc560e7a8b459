"""`Classifier`: a bundle in, records out. The only place that batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from convexport.runtime.backends import registry
from convexport.runtime.backends.base import Backend, Images, Probabilities
from convexport.runtime.backends.proof import GoldenResult, golden_results
from convexport.runtime.backends.selection import create
from convexport.runtime.bundle import open_bundle
from convexport.runtime.decoding import Decoded, Picture, decode
from convexport.runtime.devices import BATCHES
from convexport.runtime.errors import BundleError, InputError, UsageError
from convexport.runtime.images import Pause, Source
from convexport.runtime.options import Options
from convexport.runtime.records import Candidate, Failure, Prediction, Record

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from convexport.runtime.options import OptionKeys


class Classifier:
    """Classifies images with the network of one bundle.

        with Classifier("bundles/lenet5-mnist-fp16") as classifier:
            for record in classifier.classify(["seven.png", array, image]):
                print(record)

    `description` says which back end, device and precision serve, and why.

    Args:
        path: A bundle: a folder, or a zip of one.
        options: What is asked for; see `Options`. Its fields can also be given as keyword arguments:
            `Classifier(path, device="cuda", top=5)`.

    Raises:
        BundleError: The bundle is missing, damaged, or lacks the precision.
        UnavailableError: What was asked for by name is not there.
        UsageError: A value is out of its range, or contradicts another.
        GateRefused: No precision gives the answers of the export on this machine.
    """

    def __init__(
        self, path: str | os.PathLike[str], options: Options | None = None, **changes: Unpack[OptionKeys]
    ) -> None:
        self.options = replace(options or Options(), **changes)
        given = self.options.backend if isinstance(self.options.backend, Backend) else None
        if given is not None:
            _check_given(given, self.options)
        elif self.options.backend != "auto":
            registry.find(str(self.options.backend))
        self.bundle = open_bundle(path)
        try:
            self.manifest = self.bundle.manifest
            self.labels = _labels(self.manifest.labels, self.options.language)
            self.top = min(self.options.top, len(self.labels))
            self.bundle.check_labels()
            if given is not None:
                self.backend, self.description = given, f"{given.name} on {given.device}, as given"
            else:
                self.backend, self.description = create(self.bundle, self.options)
        except BaseException:
            self.bundle.close()
            raise
        self.batch = self.options.batch or BATCHES[self.backend.device.kind]

    def classify(self, images: Source | Iterable[Source | Failure | Pause]) -> Iterator[Record]:
        """One image or several -> one record each, in order, in bounded memory.

        An input that cannot be read gives a `Failure` and hurts no other; a `Failure` given as input passes through.
        Behind `images.PAUSE` nothing more is waited for: what came before it is answered at once.

        Args:
            images: A path, the bytes of a file, a Pillow image, an array, or an iterable of these. An array is uint8,
                RGB or grey: [H, W] and [H, W, 1 to 4] are one image, [N, H, W, C] and [N, H, W] are N of them.

        Raises:
            UnavailableError: The device fails.
            BundleError: The network does not fit the labels.
        """
        entries = decode(_several(images), self.manifest.input, self.options.workers, self.options.say)
        for entry in entries:
            if isinstance(entry, Failure):
                yield entry
            elif isinstance(entry, Picture):
                yield from self._stream(chain([entry], entries))

    def probabilities(self, images: Images) -> Probabilities:
        """uint8 [N, H, W, C] of the model's size -> float32 [N, K], in batches as `classify` makes them."""
        size = self.batch
        batches = (images[start : start + size] for start in range(0, len(images), size))
        answers = list(self._answers(batches))
        return np.concatenate(answers) if answers else np.zeros((0, len(self.labels)), np.float32)

    def self_test(self) -> list[GoldenResult]:
        """Classifies the bundle's golden images -> how far each is from what the origin gave it at export."""
        return golden_results(self.bundle, self.backend, self.batch)

    def close(self) -> None:
        """Frees the device and closes the bundle. Safe to call twice."""
        self.backend.close()
        self.bundle.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _stream(self, entries: Iterator[Decoded | Pause]) -> Iterator[Record]:
        """Records until the inputs end or pause, or a whole chunk holds no picture: it has no answer to wait for."""
        pending: deque[list[Decoded]] = deque()

        def batches() -> Iterator[Images]:
            paused = False
            while not paused:
                chunk, paused = self._chunk(entries)
                pending.append(chunk)
                pictures = [entry.pixels for entry in chunk if isinstance(entry, Picture)]
                if not pictures:
                    return
                yield np.stack(pictures)

        for answer in self._answers(batches()):
            yield from self._records(pending.popleft(), answer)
        for chunk in pending:
            yield from self._records(chunk, np.zeros((0, len(self.labels)), np.float32))

    def _answers(self, batches: Iterable[Images]) -> Iterator[Probabilities]:
        """Those of the back end, where they have one probability a label."""
        for answer in self.backend.stream(batches):
            if answer.shape[1] != len(self.labels):
                raise BundleError(
                    f"{self.manifest.name}: the network gives {answer.shape[1]} probabilities, the manifest has "
                    f"{len(self.labels)} labels",
                    "export it again",
                )
            yield answer

    def _chunk(self, entries: Iterator[Decoded | Pause]) -> tuple[list[Decoded], bool]:
        """The next inputs that hold at most `batch` pictures, and whether a pause follows; bounded if none is read."""
        chunk: list[Decoded] = []
        pictures = 0
        for entry in entries:
            if isinstance(entry, Pause):
                return chunk, True
            chunk.append(entry)
            pictures += isinstance(entry, Picture)
            if pictures == self.batch or len(chunk) == 4 * self.batch:
                break
        return chunk, False

    def _records(self, chunk: list[Decoded], answer: Probabilities) -> Iterator[Record]:
        """Answers float32 [pictures in chunk, K] -> records of the whole chunk."""
        order = np.argsort(-answer, axis=1, kind="stable")[:, : self.top]
        ranked = np.round(np.take_along_axis(answer, order, axis=1).astype(np.float64), 6)
        finite = np.isfinite(answer.sum(axis=1))
        rows = zip(order.tolist(), ranked.tolist(), finite.tolist(), strict=True)
        for entry in chunk:
            yield entry if isinstance(entry, Failure) else self._record(entry, *next(rows))

    def _record(self, picture: Picture, order: list[int], probabilities: list[float], finite: bool) -> Record:
        if not finite:
            where = f"{self.backend.precision} on {self.backend.device}"
            message = f"{picture.name}: the network gave no finite number in {where}"
            return Failure.of(picture.name, InputError(message, "try another precision", kind="not-finite"))
        top = tuple([Candidate(self.labels[i], i, p) for i, p in zip(order, probabilities, strict=True)])
        return Prediction(picture.name, top[0].label, top[0].index, top[0].probability, top, picture.notes)


def _labels(languages: dict[str, tuple[str, ...]], language: str) -> tuple[str, ...]:
    if language not in languages:
        raise UsageError.unknown("language", language, languages)
    return languages[language]


def _check_given(backend: Backend, options: Options) -> None:
    """A ready back end runs where and how it was made. Raises `UsageError` for options that it cannot honor."""
    asked = {"device": (options.device, str(backend.device)), "precision": (options.precision, backend.precision)}
    for name, (wanted, found) in asked.items():
        if wanted not in ("auto", found):
            raise UsageError(f"{name} {wanted}: the given back end has {found}", f"leave {name} out")
    if options.threads is not None:
        raise UsageError(
            f"threads {options.threads}: the given back end is ready made", "choose its threads where it is made"
        )


def _several(images: Source | Iterable[Source | Failure | Pause]) -> Iterable[Source | Failure | Pause]:
    """One image as a list of it, several as they are."""
    if isinstance(images, np.ndarray):
        return [images] if images.ndim < 3 or (images.ndim == 3 and images.shape[2] <= 4) else images
    return [images] if isinstance(images, str | bytes | os.PathLike | Image.Image) else images
