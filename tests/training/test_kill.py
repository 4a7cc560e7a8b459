"""`kill -9` at random instants of a run, then resuming: the same bits as the unbroken run, every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("CONVEXPORT_KILLS", "8"))

# torch is imported once; every sitting is a fork of that process, so that many kills take seconds.
SCRIPT = """
import hashlib, os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from helpers.small import digits, finish, recipe, weights
from convexport.training.plan import TrainOptions

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
dataset = digits()
_ = dataset.train, dataset.test

def sitting(state, result):
    # A state at every step: many instants lie inside its writing.
    options = TrainOptions("lenet5", recipe(), state, resume=state.exists(), state_seconds=0.0)
    found = hashlib.sha256(weights(finish(options, dataset).result)).hexdigest()
    result.write_text(found)
    state.unlink(missing_ok=True)

def fork(state, result):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sitting(state, result)
            code = 0
        finally:
            os._exit(code)
    return child

started = time.monotonic()
_, status = os.waitpid(fork(folder / "whole", folder / "whole.sha"), 0)
assert status == 0
length = time.monotonic() - started
expected = (folder / "whole.sha").read_text()
partial, END = folder / ".state.partial", os.WEXITED | os.WNOHANG | os.WNOWAIT
instants, killed, writing, finished = random.Random(0), 0, 0, 0
while killed < kills or not finished:
    state, result = folder / "state", folder / "state.sha"
    child = fork(state, result)
    if killed < kills:
        time.sleep(instants.uniform(0.0, 0.6 * length))
        # Every other kill waits for the instant at which a state is half written.
        while killed % 2 and not partial.exists() and os.waitid(os.P_PID, child, END) is None:
            pass
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
        writing += partial.exists()
        partial.unlink(missing_ok=True)
    elif status:
        sys.exit("a sitting failed after a kill")
    else:
        finished += 1
        assert result.read_text() == expected, "other bits after a kill"
print(killed, writing)
"""


def test_kills_at_random_instants_leave_a_state_that_resumes_to_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path), str(KILLS)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["tests", *sys.path[1:]]), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    killed, writing = map(int, found.stdout.split())
    assert killed == KILLS
    assert writing >= 1, "no kill fell inside the writing of a state: nothing was proved about it"
