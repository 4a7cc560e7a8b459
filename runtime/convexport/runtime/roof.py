"""The roof: what this machine's cores could classify, if no step had to wait for another.

A step that cannot be had here: every core decodes files and writes records at the rate that one core has alone, and the
network follows (on a CPU, on the same cores) or runs beside them (on a GPU).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np

from convexport.runtime.answered import Answered
from convexport.runtime.backends.fake import FakeBackend
from convexport.runtime.bundle import Bundle
from convexport.runtime.decoding import Batch, Decoder, Picture
from convexport.runtime.devices import available_cores
from convexport.runtime.records import json_lines

__all__ = ["Roof", "roof"]

ROUNDS = 5


class Roof(msgspec.Struct, frozen=True):
    """What one core needs for an image, besides the network.

    Attributes:
        decode_us: Microseconds for decoding one of the golden images from memory.
        record_us: Microseconds for making its record and its line of JSON.
        cores: How many cores the process may use.
    """

    decode_us: float
    record_us: float
    cores: int

    def images_per_second(self, network: float, kind: str) -> float:
        """The roof for a network of so many images per second on a device of the kind `cpu` or `cuda`."""
        beside = max(1e-6 * (self.decode_us + self.record_us) / self.cores, 1e-12)
        return 1 / (beside + 1 / network) if kind == "cpu" else min(1 / beside, network)


def roof(bundle: Bundle) -> Roof | None:
    """Measures it with the golden images; None where there are none."""
    manifest = bundle.manifest
    if not manifest.golden:
        return None
    named = [(golden.file, bundle.read(golden.file)) for golden in manifest.golden]
    rows = np.empty((len(named), manifest.input.height, manifest.input.width, manifest.input.channels), np.uint8)
    decoder = Decoder(manifest.input)
    answer = np.array([golden.probabilities for golden in manifest.golden], np.float32)
    batch = Batch([Picture(name) for name, _ in named], rows, False)
    answered = Answered(manifest, manifest.classes, min(3, len(manifest.classes)), None)
    nobody = FakeBackend(len(manifest.classes))
    decode = _fastest(lambda: decoder(named, rows), len(named))
    record = _fastest(lambda: json_lines(answered(batch, answer, nobody)), len(named))
    return Roof(decode, record, available_cores())


def _fastest(work: Callable[[], object], count: int) -> float:
    """Microseconds for one of `count` images, in the fastest of some rounds: other programs never make one faster."""
    taken = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return 1e6 * min(taken) / count
