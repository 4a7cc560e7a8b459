"""Where the time of a run goes: `Profile`. Without one, `OFF` stands in its place and measures nothing.

A thread does one thing at a time, so each moment of it belongs to one stage, and the stages of a thread sum to its wall
time. What waits for others is a stage as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

__all__ = ["OFF", "STAGES", "Off", "Profile"]

Item = TypeVar("Item")
STAGES = {
    "start": "import the libraries, and open the bundle and the back end",
    "names": "find the inputs, or wait for their names",
    "read": "open and read the files",
    "decode": "turn them into pixels",
    "frame": "resize them to the network's size",
    "wait": "form batches, and wait for the threads or processes that fill them",
    "run": "wait for the network's answers",
    "records": "make records and their lines",
    "write": "write the lines, show the progress, copy unsure images",
}
"""The stages in their order, and what each does."""


class Off:
    """Measures nothing."""

    def now(self, stage: str) -> str:
        """From now on this thread does `stage` -> what it did before."""
        return ""

    def during(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, each of which this thread makes in `stage`."""
        return iter(items)

    def taken(self) -> dict[str, float]:
        """Seconds of each stage in the thread that made this object, since the last call."""
        return {}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what another process has `taken`."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        # The name of the one that there is: options that were pickled are equal to what they were.
        return "OFF"


OFF = Off()


class Profile(Off):
    """Where the time goes, from the creation of this object on.

        profile = Profile()
        with Classifier("bundles/lenet5-mnist", profile=profile) as classifier:
            records = list(classifier.classify(find_images(["photos/"])))
        print(profile.own()["run"], profile.beside().get("decode", 0))

    The thread that creates it is the one whose wall time it divides. Use it for one classifier at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches = threading.local()
        self._others: list[_Watch] = []
        self._elsewhere: dict[str, float] = {}
        self._own = self._watches.mine = _Watch("start")

    def now(self, stage: str) -> str:
        """From now on this thread does `stage` -> what it did before."""
        try:
            watch: _Watch = self._watches.mine
        except AttributeError:
            watch = self._watches.mine = _Watch("")
            with self._lock:
                self._others.append(watch)
        return watch.switch(stage)

    def during(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, each of which this thread makes in `stage`."""
        iterator = iter(items)
        while True:
            before = self.now(stage)
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.now(before)
            yield item

    def taken(self) -> dict[str, float]:
        """Seconds of each stage in the thread that made this object, since the last call."""
        found = self.own()
        self._own.seconds.clear()
        return found

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what another process has `taken`."""
        with self._lock:
            _add(self._elsewhere, seconds)

    def own(self) -> dict[str, float]:
        """Seconds of each stage in the thread that made this object. They sum to the time since then."""
        self._own.switch(self._own.stage)
        return dict(self._own.seconds)

    def beside(self) -> dict[str, float]:
        """Seconds of each stage in other threads and processes, summed over them: they pass at the same time."""
        found = dict(self._elsewhere)
        with self._lock:
            for watch in self._others:
                _add(found, watch.seconds)
        found.pop("", None)  # between two tasks
        return found

    def __reduce__(self) -> tuple[type[Profile], tuple[()]]:
        """Pickles as a new one: a classifier in another process measures that process."""
        return type(self), ()


class _Watch:
    """The clock of one thread."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def switch(self, stage: str) -> str:
        now = time.perf_counter()
        before, self.stage = self.stage, stage
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._since = now
        return before


def _add(total: dict[str, float], seconds: Mapping[str, float]) -> None:
    for stage, more in seconds.items():
        total[stage] = total.get(stage, 0.0) + more
