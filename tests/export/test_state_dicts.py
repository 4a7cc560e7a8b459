"""State dicts as projects save them: what they are wrapped in is looked through, and what they are is recognized."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from convexport.export.sources.checkpoint import Source
from convexport.export.sources.opening import open_network
from convexport.export.sources.stated import Foreign
from convexport.export.sources.tutorial import TutorialLeNet
from convexport.runtime.errors import CheckpointError, UsageError

CLASSES = tuple("abcdefg")
STATED = Foreign(classes=CLASSES, pixels="-1..1")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
State = dict[str, torch.Tensor]


def lenet() -> nn.Module:
    """Weights that float16 and bfloat16 hold exactly."""
    torch.manual_seed(0)
    return TutorialLeNet(3, len(CLASSES)).bfloat16().half().float().eval()


def before(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def as_type(kind: torch.dtype, state: State) -> State:
    return {key: value.to(kind) for key, value in state.items()}


def turned(state: State) -> State:
    """The same values in another order of memory."""
    found = {}
    for key, value in state.items():
        axes = tuple(reversed(range(value.dim())))
        found[key] = value.permute(axes).contiguous().permute(axes)
    return found


def shared(state: State) -> State:
    """All tensors as parts of one."""
    one = torch.cat([value.flatten() for value in state.values()])
    parts = one.split([value.numel() for value in state.values()])
    return {key: part.view(value.shape) for (key, value), part in zip(state.items(), parts, strict=True)}


def with_leftovers(state: State) -> dict[str, Any]:
    left = {
        "n_averaged": torch.tensor(5),
        "module.conv1.total_ops": torch.zeros(1),
        "module.total_params": torch.zeros(1),
    }
    return before("module.", state) | left


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "data parallel": lambda state: {"state_dict": before("module.", state), "epoch": 3},
    "compiled": lambda state: {"model_state_dict": before("_orig_mod.module.", state)},
    "lightning": lambda state: {"state_dict": before("model.", state), "hyper_parameters": {"root": Path("data")}},
    "average": lambda state: {"ema": {"state_dict": before("net.", state)}},
    "backbone": lambda state: {"params": before("backbone.", state)},
    "numpy": lambda state: {
        "net": state,
        "best": np.float64(0.9),
        "curve": np.zeros(3),
        "args": argparse.Namespace(lr=1),
    },
    "half": lambda state: {"model": as_type(torch.float16, state)},
    "bfloat16": lambda state: as_type(torch.bfloat16, state),
    "double": lambda state: as_type(torch.float64, state),
    "turned": turned,
    "shared": shared,
    "leftovers": with_leftovers,
}


def answers(path: Path) -> Any:
    return open_network(Source(None, path=path, foreign=STATED)).reference(IMAGES)


def by_torch(module: nn.Module) -> Any:
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return module(pixels).softmax(1).numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognized_and_answers_as_its_origin(tmp_path: Path, layout: str) -> None:
    module = lenet()
    torch.save(LAYOUTS[layout](module.state_dict()), tmp_path / "w.pth")
    np.testing.assert_allclose(answers(tmp_path / "w.pth"), by_torch(module), atol=1e-5)


def test_safetensors_and_torchs_old_format_are_recognized_too(tmp_path: Path) -> None:
    module = lenet()
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    torch.save(module.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.pth"):
        np.testing.assert_allclose(answers(tmp_path / name), by_torch(module), atol=1e-5)


def test_pruned_weights_are_multiplied_out_with_a_remark(tmp_path: Path) -> None:
    module: Any = lenet()
    prune.random_unstructured(module.conv2, "weight", 0.5)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    found = open_network(Source(None, path=tmp_path / "w.pth", foreign=STATED))
    np.testing.assert_allclose(found.reference(IMAGES), by_torch(module), atol=1e-5)
    assert "weights     pruned: conv2.weight" in found.remarks


def test_what_tools_left_behind_is_dropped_with_a_remark(tmp_path: Path) -> None:
    torch.save(with_leftovers(lenet().state_dict()), tmp_path / "w.pth")
    found = open_network(Source(None, path=tmp_path / "w.pth", foreign=STATED))
    assert "weights     left out: n_averaged, module.conv1.total_ops, module.total_params" in found.remarks


def saved(what: Any) -> bytes:
    file = io.BytesIO()
    torch.save(what, file)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: saved({"a.weight": torch.zeros(2, 2)}),
            (
                "fit none of our networks and none of torchvision's (their tensors begin a.weight); give their network "
                "with --model module:FILE.py:FUNCTION"
            ),
        ),
        (
            lambda: saved(lenet()),
            (
                "contain more than tensors, like a pickled module, and are not loaded, because that could run code; "
                "save only network.state_dict(), and name the network with --model"
            ),
        ),
        (
            scripted,
            (
                ": it is a TorchScript program, which is code; convexport does not run it; save "
                "torch.jit.load(FILE).state_dict() and give its network with --model"
            ),
        ),
        (
            lambda: saved({"fc.weight": torch.zeros(1).expand(100_000_000_000)}),
            ": tensors of 400,000,000,000 bytes, more than the limit of 68,719,476,736",
        ),
        (lambda: b"hello world", "are neither safetensors nor a file of torch.save; check the path"),
        (lambda: b"PK\3\4" + bytes(99), "are damaged (PytorchStreamReader failed reading zip archive: "),
    ],
)
def test_what_cannot_be_recognized_is_one_useful_line(
    tmp_path: Path, content: Callable[[], bytes], message: str
) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content())
    with pytest.raises(CheckpointError) as caught:
        answers(path)
    assert str(caught.value).startswith(f"weights {path}{'' if message[0] == ':' else ' '}{message}")


def test_weights_beside_their_average_are_a_choice(tmp_path: Path) -> None:
    state = lenet().state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "w.pth")
    with pytest.raises(UsageError) as caught:
        answers(tmp_path / "w.pth")
    assert str(caught.value) == (
        f"weights {tmp_path}/w.pth contain 2 state dicts: state_dict, state_dict_ema; "
        "choose one, as in --state state_dict"
    )
