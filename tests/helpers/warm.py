"""The commands in processes that are forked from one which has imported torch: a start takes no seconds.

Everything else is as in a process of its own: arguments, folder, streams, signals and exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
        self._process = _CONTEXT.Process(target=_run, args=(self._words, str(cwd), str(self._place)))
        self._process.start()

    @property
    def err(self) -> str:
        """Its messages so far."""
        file = self._place / "stderr"
        return file.read_text() if file.exists() else ""

    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def wait_for(self, path: Path) -> None:
        """Waits until a file is there, or the command has ended."""
        while not path.exists() and self.runs():
            time.sleep(0.01)

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def ended(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Waits for its end -> exit code, results and messages."""
        self._process.join(timeout)
        assert not self.runs(), f"{self._words} still runs after {timeout} seconds"
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
