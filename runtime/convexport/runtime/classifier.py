"""`Classifier`: a bundle in, records out. The only place that batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from convexport.runtime.answered import Answered
from convexport.runtime.backends.answers import checked_stream
from convexport.runtime.backends.base import Backend, Images, Probabilities
from convexport.runtime.backends.proof import GoldenResult, golden_results
from convexport.runtime.bundle import Bundle
from convexport.runtime.decoding import Batch
from convexport.runtime.devices import BATCHES
from convexport.runtime.errors import ConvexportError, UsageError
from convexport.runtime.inputs import Given, several
from convexport.runtime.manifest import Promise
from convexport.runtime.notebooks import html_table
from convexport.runtime.opened import Holder
from convexport.runtime.options import Options
from convexport.runtime.pipeline import Reading, read_batches
from convexport.runtime.records import Record
from convexport.runtime.sure import promise

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from convexport.runtime.options import OptionKeys

__all__ = ["Classifier", "Progress"]

Progress = Callable[[int, int | None], None]
"""Called with the number of records so far, and the number of inputs or None if it is unknown."""


class Classifier:
    """Classifies images with the network of one bundle.

        with Classifier("bundles/lenet5-mnist") as classifier:
            for record in classifier.classify(["seven.png", array, image]):
                print(record)

    One classifier serves any number of threads at once: `classify`, `classify_one`, `probabilities`, `self_test` and
    `info` may be called from all of them, while each iterator that `classify` returns belongs to one thread. Call
    `close` when no other call is running.

    It can be pickled, as its path and options: the receiver opens the bundle again. In a forked child it opens its own
    back end at its first use and never touches the inherited one. A GPU cannot be used after a fork, so there the first
    use raises a `DeviceError`. OpenVINO cannot either: asked for by name, it raises a `BackendError` in the child, and
    "auto" takes another back end there.

    Args:
        path: A bundle: a folder, or a zip of one.
        options: See `Options`. Its fields can also be given as keyword arguments:
            `Classifier(path, device="cuda", top=5)`.

    Attributes:
        options: The options.
        manifest: The bundle's manifest.
        labels: The classes in the language of the options, in the network's order.
        top: How many classes a record lists.
        batch: The largest number of images computed at once.

    Raises:
        BundleError: The bundle is missing or damaged, or does not contain the precision or the share of `sure`.
        UnavailableError: A device, back end or library that was asked for by name is missing.
        UsageError: A value is out of range, or two values exclude each other.
        GateRefused: No precision, or not the one asked for, gives the answers of the export on this machine.
    """

    def __init__(
        self, path: str | os.PathLike[str], options: Options | None = None, **changes: Unpack[OptionKeys]
    ) -> None:
        if options is not None and not isinstance(options, Options):
            raise UsageError(
                f"options {options!r}: expected an Options object", "name the option, such as device='cpu'"
            )
        self.options = replace(options or Options(), **changes)
        self._holder = Holder(path, self.options)
        self.manifest = self._holder.last.bundle.manifest
        self.labels = self.manifest.labels[self.options.language]
        self.top = min(self.options.top, len(self.labels))
        self.batch = self.options.batch or BATCHES[self._holder.last.backend.device.kind]
        self._served: tuple[Backend, Promise | None, Answered] | None = None
        self._serving()
        self._profile = self.options.profile

    @property
    def bundle(self) -> Bundle:
        """The open bundle."""
        return self._holder.current().bundle

    @property
    def backend(self) -> Backend:
        """The back end in use."""
        return self._holder.current().backend

    @property
    def promise(self) -> Promise | None:
        """What the export promises of the answers that are sure; None without the option `sure`."""
        return self._serving()[1]

    @property
    def description(self) -> str:
        """Which back end, device and precision are in use, and why."""
        return self._holder.current().description

    def classify(self, images: Given | Iterable[Given], *, progress: Progress | None = None) -> Iterator[Record]:
        """One image or several -> one record each, in order, in bounded memory.

        An input that cannot be read becomes a `Failure`, and all other inputs are classified. A `Failure` given as
        input is passed on.

            for record in classifier.classify([("front door", jpeg_bytes), "cat.png"]):
                print(record.input, record.label if record.ok else record.error.message)

        Args:
            images: One image or an iterable of them. An image is a path, the bytes of an image file (`bytes`,
                `bytearray`, `memoryview`), an open binary file, a Pillow image, or an array. One in memory can be given
                a name, which its record and messages carry: the tuple `(name, image)`. An array is uint8, gray, or RGB
                unless the option `channels` says "bgr": [H, W] and [H, W, 1 to 4] are one image, [N, H, W, C] and
                [N, H, W] are N of them.
            progress: Called after each record with the number of records so far, and the number of images where
                `images` has a length, else None.

        Returns:
            An iterator of records. It computes a batch when a record of that batch is requested. By then it may have
            read up to `3 x batch` further inputs. If the source is slow to give the next input, the inputs that were
            already read are classified in the meantime.

        Raises:
            UsageError: An input is not an image of any kind. For `images` itself it is raised at once.
            BackendError: The back end's answer is not probabilities.
            BundleError: The network does not fit the labels.
            UnavailableError: The device fails.
        """
        inputs = several(images)
        records = _one_by_one(self._blocks(inputs, self.options.workers))
        if progress is None:
            return records
        return _reported(records, progress, len(inputs) if isinstance(inputs, Sized) else None)

    def classify_batches(self, images: Given | Iterable[Given]) -> Iterator[list[Record]]:
        """As `classify`, with the records of each batch together, as soon as they are there.

            for records in classifier.classify_batches(find_images(["photos/"])):
                file.write(json_lines(records))

        Args:
            images: As for `classify`.

        Returns:
            An iterator of lists of records.

        Raises:
            UsageError: As `classify`, and so are the other errors.
        """
        return self._blocks(several(images), self.options.workers)

    def classify_one(self, image: Given) -> Record:
        """One image -> its record.

            record = classifier.classify_one("cat.png")

        Args:
            image: As one image of `classify`, or a pair `(name, image)`; an array is [H, W] or [H, W, 1 to 4].

        Returns:
            A `Prediction`, or a `Failure` if the image cannot be read.

        Raises:
            UsageError: It is not an image of any kind, or it is several images.
        """
        ((record,),) = self._blocks([image], workers=0)
        return record

    def info(self) -> dict[str, Any]:
        """The bundle, back end, device, precision and options, as plain values for `json.dumps`."""
        backend = self.backend
        serving = {
            "backend": backend.name,
            "backend_version": backend.version,
            "device": str(backend.device),
            "precision": backend.precision,
            "batch": self.batch,
            "why": self.description,
        }
        return {**self.bundle.info(), **serving, "labels": list(self.labels)}

    def __reduce__(self) -> tuple[type[Classifier], tuple[str, Options]]:
        """Pickles as path and options."""
        return type(self), (self._holder.absolute, self.options)

    def __repr__(self) -> str:
        backend = self._holder.last.backend
        where = f"{backend.name} on {backend.device} in {backend.precision}"
        return f"<Classifier {self.manifest.name}: {self.manifest.model.name}, {where}, {len(self.labels)} classes>"

    def _repr_html_(self) -> str:
        return html_table(f"Classifier {self.manifest.name}", self.info())

    def probabilities(self, images: Images) -> Probabilities:
        """The network's probabilities, in batches as `classify` makes them.

        Args:
            images: uint8 [N, H, W, C] of the model's size.

        Returns:
            float32 [N, K] in the order of `labels`, each row summing to 1 unless an image may have several labels.

        Raises:
            BackendError: The back end's answer is not probabilities.
            BundleError: The network does not fit the labels.
            UnavailableError: The device fails.
        """
        size = self.batch
        batches = (images[start : start + size] for start in range(0, len(images), size))
        answers = list(self._answers(batches))
        return np.concatenate(answers) if answers else self._no_answers()

    def self_test(self) -> list[GoldenResult]:
        """Classifies the bundle's golden images, which show whether this device computes what the export computed.

            assert all(result.passed for result in classifier.self_test())

        Returns:
            For each golden image, the difference from the origin's answer at export.

        Raises:
            BundleError: An image differs from the manifest, or is not an image.
            UnavailableError: The device fails.
        """
        return golden_results(self.bundle, self.backend, self.batch)

    def close(self) -> None:
        """Frees the device and closes the bundle. Safe to call twice."""
        self._holder.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _blocks(self, inputs: Iterable[Given], workers: int | None) -> Iterator[list[Record]]:
        """Records by batch, each made in the stage `records` of a profile."""
        return self._profile.during("records", self._batches(inputs, workers))

    def _batches(self, inputs: Iterable[Given], workers: int | None) -> Iterator[list[Record]]:
        size = min(self.batch, len(inputs) or 1) if isinstance(inputs, Sized) else self.batch
        reading = Reading(self.manifest.input, size, workers, self.options.channels, self.options.say, self._profile)
        batches = self._profile.during("wait", read_batches(inputs, reading))
        for batch in batches:
            if len(batch.images):
                yield from self._stream(batch, batches)
            else:
                yield self._records(batch, self._no_answers())

    def _stream(self, first: Batch, batches: Iterator[Batch]) -> Iterator[list[Record]]:
        """Records until the inputs end or pause, or a batch holds no picture: it has no answer to wait for."""
        pending: deque[Batch] = deque()

        def images() -> Iterator[Images]:
            for batch in chain([first], batches):
                pending.append(batch)
                if len(batch.images):
                    yield batch.images
                if batch.paused or not len(batch.images):
                    return

        for answer in self._profile.during("run", self._answers(images())):
            yield self._records(pending.popleft(), answer)
        for batch in pending:
            yield self._records(batch, self._no_answers())

    def _records(self, batch: Batch, probabilities: Probabilities) -> list[Record]:
        backend, _, answered = self._serving()
        return answered(batch, probabilities, backend)

    def _serving(self) -> tuple[Backend, Promise | None, Answered]:
        """The back end in use, with the promise for what it runs: a forked child may have opened another one."""
        backend = self.backend
        if self._served is None or self._served[0] is not backend:
            promised = self._promise(backend)
            self._served = (backend, promised, Answered(self.manifest, self.labels, self.top, promised))
        return self._served

    def _answers(self, batches: Iterable[Images]) -> Iterator[Probabilities]:
        """The back end's probabilities, checked: one for each label."""
        return checked_stream(self.backend, batches, self.manifest)

    def _no_answers(self) -> Probabilities:
        return np.zeros((0, len(self.labels)), np.float32)

    def _promise(self, backend: Backend) -> Promise | None:
        """The bundle's promise for the option `sure`; if there is none, our own back end is closed again."""
        if self.options.sure is None:
            return None
        try:
            return promise(self.manifest, backend, self.options.sure)
        except ConvexportError:
            if not isinstance(self.options.backend, Backend):
                self.close()
            raise


def _one_by_one(blocks: Iterator[list[Record]]) -> Iterator[Record]:
    for block in blocks:
        yield from block


def _reported(records: Iterator[Record], progress: Progress, total: int | None) -> Iterator[Record]:
    for done, record in enumerate(records, 1):
        progress(done, total)
        yield record
