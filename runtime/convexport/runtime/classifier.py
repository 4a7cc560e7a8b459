"""`Classifier`: a bundle in, records out. The only place that batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from convexport.runtime.backends import BATCHES, BackendRequest, create
from convexport.runtime.backends.base import Backend, Images, Probabilities
from convexport.runtime.bundle import open_bundle
from convexport.runtime.decoding import Decoded, Picture, decode
from convexport.runtime.errors import BundleError, InputError, UsageError
from convexport.runtime.images import Source, load_image
from convexport.runtime.records import Candidate, Failure, Prediction, Record

TOP = 3
MAX_THREADS = 1024


@dataclass(frozen=True)
class GoldenResult:
    """One golden image on this device against what torch float32 gave it at export."""

    file: str
    expected: str
    label: str
    max_abs_difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Same label, and no probability further away than the variant's tolerance."""
        return self.label == self.expected and self.max_abs_difference <= self.tolerance


class Classifier:
    """Classifies pictures with the network of one bundle.

        with Classifier("bundles/lenet5-mnist-fp16") as classifier:
            for record in classifier.classify(["seven.png", array, image]):
                print(record)

    `device` is `auto`, `cpu`, `cuda` or `cuda:N`; `backend` is `auto`, `onnxruntime`, `tensorrt` or a `Backend` of your
    own; `precision` is `auto` or one that the bundle holds. `auto` takes the best that works and `description` says
    what and why; a name is kept or refused. `batch` is the largest number of pictures computed at once, `top` how many
    classes a record lists, `language` that of the labels, `threads` those of the CPU (every core by default), `workers`
    how many other processes read pictures: none suits a CPU, a fast GPU waits for its pictures otherwise. `note` hears
    remarks, as while an engine is built.

    Raises `BundleError`, `UnavailableError` or `UsageError`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        backend: str | Backend = "auto",
        precision: str = "auto",
        batch: int | None = None,
        *,
        top: int = TOP,
        language: str = "en",
        threads: int | None = None,
        workers: int = 0,
        note: Callable[[str], None] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch", batch, 1),
            ("top", top, 1),
            ("threads", threads, 1),
            ("workers", workers, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} {value}: expected {least} or more")
        if threads is not None and threads > MAX_THREADS:
            raise UsageError(f"threads {threads}: expected at most {MAX_THREADS}")
        self.workers = workers
        self.bundle = open_bundle(path)
        try:
            self.manifest = self.bundle.manifest
            self.labels = _labels(self.manifest.labels, language)
            self.top = min(top, len(self.labels))
            self.bundle.check_labels()
            if isinstance(backend, Backend):
                self.backend, self.description = backend, f"{backend.name} on {backend.device}, as given"
            else:
                request = BackendRequest(device, backend, precision, batch, threads, note)
                self.backend, self.description = create(self.bundle, request)
        except BaseException:
            self.bundle.close()
            raise
        self.batch = batch or BATCHES[self.backend.device.kind]

    def classify(self, images: Iterable[Source | Failure]) -> Iterator[Record]:
        """Paths, bytes of files, arrays or Pillow images -> one record each, in order, in bounded memory.

        An input that cannot be read gives a `Failure` and hurts no other; a `Failure` given as input passes through.
        Raises `UnavailableError` where the device fails, `BundleError` where the network does not fit the labels,
        `UsageError` for one name in place of several.
        """
        if isinstance(images, str | bytes):
            raise UsageError("classify takes several images; put a single one in a list: [image]")
        entries = decode(images, self.manifest.input, self.workers)
        for entry in entries:
            if isinstance(entry, Failure):
                yield entry
            else:
                yield from self._stream(chain([entry], entries))

    def probabilities(self, images: Images) -> Probabilities:
        """uint8 [N, H, W, C] of the model's size -> float32 [N, K], in batches as `classify` makes them."""
        size = self.batch
        batches = (images[start : start + size] for start in range(0, len(images), size))
        answers = list(self._answers(batches))
        return np.concatenate(answers) if answers else np.zeros((0, len(self.labels)), np.float32)

    def self_test(self) -> list[GoldenResult]:
        """Classifies the bundle's golden images -> how far each is from what torch float32 gave it at export."""
        golden = self.manifest.golden
        tolerance = self.manifest.variants[self.backend.precision].golden_tolerance  # type: ignore[index]
        pictures = [load_image(self.bundle.read(g.file), self.manifest.input, name=g.file)[0] for g in golden]
        if not pictures:
            return []
        found = self.probabilities(np.stack(pictures))
        names = self.manifest.classes
        return [
            GoldenResult(
                file=g.file,
                expected=names[int(np.argmax(g.probabilities))],
                label=names[int(np.argmax(p))],
                # NaN stays NaN and so passes no tolerance.
                max_abs_difference=float(np.abs(np.asarray(g.probabilities) - p).max()),
                tolerance=tolerance,
            )
            for g, p in zip(golden, found, strict=True)
        ]

    def close(self) -> None:
        """Frees the device and closes the bundle. Safe to call twice."""
        self.backend.close()
        self.bundle.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _stream(self, entries: Iterator[Decoded]) -> Iterator[Record]:
        """Records until the inputs end or a whole chunk holds no picture: such a chunk has no answer to wait for."""
        pending: deque[list[Decoded]] = deque()

        def batches() -> Iterator[Images]:
            while chunk := self._chunk(entries):
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
                    f"{len(self.labels)} labels; export it again"
                )
            yield answer

    def _chunk(self, entries: Iterator[Decoded]) -> list[Decoded]:
        """The next inputs that hold at most `batch` pictures; bounded too where many cannot be read."""
        chunk: list[Decoded] = []
        pictures = 0
        for entry in entries:
            chunk.append(entry)
            pictures += isinstance(entry, Picture)
            if pictures == self.batch or len(chunk) == 4 * self.batch:
                break
        return chunk

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
            message = f"{picture.name}: the network gave no finite number in {where}; try another --precision"
            return Failure.of(picture.name, InputError(message, kind="not-finite"))
        top = tuple([Candidate(self.labels[i], i, p) for i, p in zip(order, probabilities, strict=True)])
        return Prediction(picture.name, top[0].label, top[0].index, top[0].probability, top, picture.notes)


def _labels(languages: dict[str, tuple[str, ...]], language: str) -> tuple[str, ...]:
    if language not in languages:
        raise UsageError.unknown("language", language, languages)
    return languages[language]
