"""The commands in processes that are forked from one that has imported torch, so that their starts do not take seconds.

Arguments, folder, output streams, signals and exit code are as in a process of its own. The environment is that of the
first start, and standard input is empty.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "sklearn.datasets", "convexport.training.loop", "convexport.export.pipeline"]
)
_HANDLERS = {
    signal.SIGINT: signal.default_int_handler,
    **dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL),
}


class Started:
    """A running command. Its results and its messages go to files."""

    def __init__(self, name: str, *words: str | Path, cwd: Path) -> None:
        self._words = [name, *map(str, words)]
        self._place = Path(mkdtemp(dir=cwd.parent, prefix=f"{cwd.name}-streams-"))
        # A daemon is ended with the tests, however they end.
        self._process = _CONTEXT.Process(target=_run, args=(self._words, str(cwd), str(self._place)), daemon=True)
        self._process.start()

    @property
    def err(self) -> str:
        """Its messages so far."""
        file = self._place / "stderr"
        return file.read_text() if file.exists() else ""

    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def wait_for(self, done: Callable[[], bool], timeout: float = 300) -> None:
        """Waits until something is done, or the command has ended."""
        limit = time.monotonic() + timeout
        while not done() and self.runs() and time.monotonic() < limit:
            time.sleep(0.01)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the command has ended."""
        if self.runs() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def ended(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Waits for its end -> exit code, results and messages."""
        self._process.join(timeout)
        late = self.runs()
        if late:
            self._process.kill()
            self._process.join()
        assert not late, f"{self._words} still ran after {timeout} seconds"
        assert self._process.exitcode is not None
        out = (self._place / "stdout").read_text()
        return subprocess.CompletedProcess(self._words, self._process.exitcode, out, self.err)


def run(name: str, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return Started(name, *words, cwd=cwd).ended()


def _run(words: list[str], cwd: str, streams: str) -> None:
    import torch

    from convexport.cli import start

    # Where the tests run in a shell's background or under nohup, their children would inherit ignored signals.
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)
    os.chdir(cwd)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{streams}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = words
    torch.set_num_threads(1)
    sys.exit(getattr(start, words[0])())
