"""Two processes with gloo on this machine against one: the same loss curve with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convexport.runtime.errors import UsageError
from convexport.training.distributed import GlobalBatchNorm2d, Group

SCRIPT = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
from helpers.small import digits, finish, recipe, stop_after
from convexport.runtime.errors import Interrupted
from convexport.training.plan import TrainOptions

model, folder, stop, resume = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume"
dataset = digits()
if model == "cnn-cifar10":
    from convexport.runtime.manifest import Input
    from convexport.training import datasets
    dataset = datasets._fit(dataset, Input(height=32, width=32, channels=3))
# One process' clock says at every step that a state is due, the other's never: they must agree or wait for ever.
seconds = 0.0 if os.environ.get("RANK", "0") == "0" else 1e9
options = TrainOptions(
    model, recipe(learning_rate=0.02), folder / "state.safetensors", resume=resume, state_seconds=seconds
)
if stop:
    options = replace(options, stop=stop_after(stop))
try:
    run = finish(options, dataset)
except Interrupted:
    sys.exit(130)
if run.result.writes:
    curve = [(record.train_loss, record.train_accuracy, record.validation_loss) for record in run.records]
    (folder / "curve.json").write_text(json.dumps(curve))
"""


def launch(folder: Path, processes: int, model: str, *, stop: int = 0, resume: bool = False) -> int:
    folder.mkdir(exist_ok=True)
    script = folder / "run.py"
    script.write_text(SCRIPT)
    arguments = [str(script), model, str(folder), str(stop), "resume" if resume else "anew"]
    command = [sys.executable, *arguments]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *torchrun, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["tests", *sys.path[1:]]), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if found.returncode and not stop:
        pytest.fail(found.stderr[-3000:])
    return found.returncode


def curve(folder: Path) -> list[list[float]]:
    return json.loads((folder / "curve.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """The curve of LeNet-5 in two processes."""
    folder = tmp_path_factory.mktemp("together")
    launch(folder, 2, "lenet5")
    return curve(folder)


def test_two_processes_follow_the_loss_curve_of_one(tmp_path: Path, together: list[list[float]]) -> None:
    launch(tmp_path, 1, "lenet5")
    for one, two in zip(curve(tmp_path), together, strict=True):
        assert two == pytest.approx(one, rel=2e-3)


def test_two_processes_follow_the_loss_curve_of_one_batch_norm_included(tmp_path: Path) -> None:
    launch(tmp_path / "one", 1, "cnn-cifar10")
    launch(tmp_path / "two", 2, "cnn-cifar10")
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=2e-3)


def test_two_processes_stop_together_and_resume_together(tmp_path: Path, together: list[list[float]]) -> None:
    assert launch(tmp_path, 2, "lenet5", stop=9) != 0
    assert (tmp_path / "state.safetensors").is_file()
    launch(tmp_path, 2, "lenet5", resume=True)
    for whole, parts in zip(together[1:], curve(tmp_path), strict=True):
        assert parts == pytest.approx(whole, rel=1e-6)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        Group(0, 3).check_share(128)
    assert str(caught.value) == "batch 128 cannot be divided evenly among 3 processes; use a multiple of 3"


def test_in_evaluation_the_common_batch_norm_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours, theirs = GlobalBatchNorm2d(4), torch.nn.BatchNorm2d(4)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(3, 4, 5, 5)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))
