"""`Options`: the options of a classifier. One object, passed from the command or program to the back end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

from convexport.runtime.devices import Device
from convexport.runtime.errors import UsageError
from convexport.runtime.precision import PRECISIONS
from convexport.runtime.profiling import OFF, Off

if TYPE_CHECKING:
    from convexport.runtime.backends.base import Backend

__all__ = ["OptionKeys", "Options"]

MAX_THREADS = 1024
LOGGER = "convexport"
CHANNELS = ("rgb", "bgr")


def say(note: Callable[[str], None] | None, text: str) -> None:
    """Passes a remark to `note`, else to the logger `convexport` at the level INFO."""
    if note is not None:
        note(text)
    else:
        import logging

        logging.getLogger(LOGGER).info("%s", text)


@dataclass(frozen=True)
class Options:
    """How a bundle is run. With `auto` the runtime chooses and says what. A name is used, or an error says why not.

        options = Options(device="cpu", threads=4, top=5)
        classifier = Classifier("bundles/lenet5-mnist", options)

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        backend: `auto`, the name of a row of `backends.registry.BACKENDS`, or a `Backend` of your own.
        precision: `auto`, or one that the bundle contains.
        batch: The largest number of images computed at once; None takes 64 on a CPU and 256 on a GPU.
        threads: Threads of the CPU; None takes one for each core that the process may use.
        workers: Processes that decode images; 0 decodes in the thread that asks for records, None decodes in threads,
            and in processes after a while, where that pays.
        top: How many classes a record lists; at most as many as there are.
        language: Language of the labels.
        channels: Order of the channels in arrays: `rgb`, or `bgr` for OpenCV's. It does not affect files and Pillow
            images.
        sure: A share of right answers, such as 0.98. Records are marked as sure so that this share of them is right;
            the bundle must have measured it. None marks nothing.
        note: Called with each remark for the user, one line each; None sends them to the logger `convexport`.
        prove: Whether what serves must have passed the golden images on this machine, whoever chose it.
        profile: Measures where the time goes, if it is a `Profile`.

    Raises:
        UsageError: A value is out of range, or two values exclude each other.
    """

    device: str = "auto"
    backend: str | Backend = "auto"
    precision: str = "auto"
    batch: int | None = None
    threads: int | None = None
    workers: int | None = None
    top: int = 3
    language: str = "en"
    channels: Literal["rgb", "bgr"] = "rgb"
    sure: float | None = None
    note: Callable[[str], None] | None = None
    prove: bool = True
    profile: Off = OFF

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch", self.batch, 1),
            ("threads", self.threads, 1),
            ("workers", self.workers, 0),
            ("top", self.top, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} {value}: expected {least} or more")
        if self.threads is not None and self.threads > MAX_THREADS:
            raise UsageError(f"threads {self.threads}: expected at most {MAX_THREADS}")
        if self.device != "auto":
            Device.parse(self.device)
        if self.channels not in CHANNELS:
            raise UsageError.unknown("order of channels", self.channels, CHANNELS)
        if self.precision not in ("auto", *PRECISIONS):
            raise UsageError.unknown("precision", self.precision, ("auto", *PRECISIONS))

    def say(self, text: str) -> None:
        """Passes a remark to `note`, else to the logger `convexport`."""
        say(self.note, text)


class OptionKeys(TypedDict, total=False):
    """The fields of `Options` as keyword arguments of a `Classifier`."""

    device: str
    backend: str | Backend
    precision: str
    batch: int | None
    threads: int | None
    workers: int | None
    top: int
    language: str
    channels: Literal["rgb", "bgr"]
    sure: float | None
    note: Callable[[str], None] | None
    prove: bool
    profile: Off
