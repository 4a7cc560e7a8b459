"""Real bundles made in a moment: a convolution and a dense layer with fixed random weights, without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from convexport.runtime import manifest as m

ENGLISH = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FRENCH = ("avion", "automobile", "oiseau", "chat", "cerf", "chien", "grenouille", "cheval", "bateau", "camion")


def make_graph(
    input: m.Input, classes: int = 10, *, seed: int = 0, scale: float = 3.0, batch: int | None = None
) -> bytes:
    """ONNX bytes by the contract of the graph; `scale` makes the answers more or less sure."""
    random = np.random.default_rng(seed)
    features = 4 * (input.height - 2) * (input.width - 2)
    constants = {
        "full": np.float32(255.0),
        "mean": np.full(input.channels, 0.5, np.float32),
        "kernel": random.normal(0, 0.5, (4, input.channels, 3, 3)).astype(np.float32),
        "shape": np.array([-1, features], np.int64),
        "weight": (random.normal(0, scale, (features, classes)) / features**0.5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["cast", "full"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centered"]),
        helper.make_node("Transpose", ["centered"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["features"]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("Reshape", ["active", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    shape = [batch or "batch", input.height, input.width, input.channels]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch or "batch", classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def make_bundle(
    folder: Path,
    input: m.Input | None = None,
    *,
    precisions: Iterable[str] = ("fp32",),
    rates: dict[tuple[str, str], float] | None = None,
    machine: str = "",
    labels: dict[str, tuple[str, ...]] | None = None,
    batch: int | None = None,
) -> Path:
    """Writes a whole bundle to `folder` and gives it back. Precisions share one graph.

    `rates` are images/s by (back end, precision), measured on a processor of the kind `machine`.
    """
    input = input or m.Input(height=12, width=12, channels=3)
    labels = labels or {"en": ENGLISH, "fr": FRENCH}
    graph = make_graph(input, len(labels["en"]), batch=batch)
    golden = pictures(2, input, seed=1) // (1 if input.ink == "any" else 4)  # dark paper is read as it is
    answers = ReferenceEvaluator(onnx.load_from_string(graph)).run(None, {"images": golden})[0]
    files = {f"golden/{i}.png": png(picture) for i, picture in enumerate(golden)}
    files |= {f"model.{precision}.onnx": graph for precision in precisions}
    files["labels.txt"] = "\n".join(labels["en"]).encode()
    rates = rates or {}
    manifest = m.Manifest(
        format=m.FORMAT,
        name=folder.name,
        model=m.Model(name="tiny", parameters=4321),
        input=input,
        batch=batch,
        normalization=m.Normalization(mean=(0.5,) * input.channels, std=(1.0,) * input.channels),
        labels=labels,
        variants={
            p: make_variant(
                f"model.{p}.onnx",
                {name: rate for (name, precision), rate in rates.items() if precision == p},
                machine,
            )
            for p in precisions
        },
        golden=tuple(
            m.Golden(file=f"golden/{i}.png", label=None, probabilities=tuple(float(x) for x in answers[i]))
            for i in range(len(golden))
        ),
        provenance=m.Provenance(
            checkpoint_sha256="0" * 64,
            dataset=m.Dataset(name="noise", title="Noise", provenance="a random generator"),
            recipe={},
            seed=0,
            git_commit=None,
            versions={},
            accuracy=m.Accuracy(test=0.9876, test_images=10000),
        ),
        files={name: m.File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in files.items()},
    )
    for name, data in (files | {"bundle.json": m.encode(manifest)}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def make_variant(file: str, rates: dict[str, float] | None = None, machine: str = "") -> m.Variant:
    """A variant whose gate measured what the tests need to read back, with the rate of each back end."""

    def measured(backend: str, rate: float | None) -> m.Verification:
        return m.Verification(
            method=("runtime",),
            backend=backend,
            device="cpu",
            machine=machine,
            images=2000,
            images_kind="Noise, test",
            accuracy=0.9871,
            torch_accuracy=0.9876,
            agreement=0.9995,
            max_abs_difference=0.0001,
            images_per_second=rate,
            measures=(),
        )

    found = {"onnxruntime": None, **(rates or {})}
    verifications = tuple(measured(backend, rate) for backend, rate in found.items())
    return m.Variant(file=file, opset=20, ir_version=10, golden_tolerance=1e-4, verifications=verifications)


def pictures(count: int, input: m.Input, *, seed: int = 0) -> NDArray[np.uint8]:
    """Random uint8 [count, H, W, C]."""
    shape = (count, input.height, input.width, input.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(picture: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, C] -> the bytes of a PNG."""
    stream = BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(stream, "PNG")
    return stream.getvalue()


def change_manifest(folder: Path, **changes: object) -> None:
    """Rewrites fields of a bundle's manifest, which then has no digest, like those before format 3.3."""
    path = folder / "bundle.json"
    values = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(values | changes | {"digest": None}))
