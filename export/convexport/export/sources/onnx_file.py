"""Origin `FILE.onnx`: a graph that another tool wrote. The file itself, run by ONNX Runtime, is the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from convexport.export.sources import stated as facts_stated
from convexport.export.sources.foreign import data_of, plain_name
from convexport.export.sources.network import Facts, Network, probabilities_of
from convexport.export.sources.onnx_core import Runner, proved_core, trial_images
from convexport.export.sources.onnx_reading import read_model
from convexport.export.sources.onnx_signature import Signature, signature_of
from convexport.export.sources.stated import Foreign, Known
from convexport.export.sources.torch_module import kind_of_answers, last_operator
from convexport.runtime.errors import CheckpointError


class OnnxNetwork(Network):
    """A `Network` whose origin is an ONNX file."""

    def __init__(self, data: bytes, core: onnx.ModelProto, signature: Signature, facts: Facts) -> None:
        self.facts = facts
        self._core = core.SerializeToString()
        self._run = Runner(data, signature)

    def reference(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return probabilities_of(self._run(normalized(images, self.facts)), self.facts)

    def core(self) -> onnx.ModelProto:
        return onnx.load_from_string(self._core)

    @property
    def takes_bytes(self) -> bool:
        return self._run.signature.dtype is np.uint8


def normalized(images: NDArray[np.uint8], facts: Facts) -> NDArray[np.float32]:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W], as the shell of the graph computes it."""
    mean, std = (np.array(values, np.float64) for values in (facts.normalization.mean, facts.normalization.std))
    offset, scale = (255 * mean).astype(np.float32), (1 / (255 * std)).astype(np.float32)
    pixels = (images.astype(np.float32) - offset) * scale
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def open_onnx(path: Path, stated: Foreign) -> Network:
    """The network of an ONNX file.

    Raises:
        UsageError: A required fact was not stated, or a stated fact is impossible.
        CheckpointError: The file is damaged, or not a classifier of images.
    """
    model, sha256 = read_model(path)
    return network_of_graph(model, path, sha256, stated)


def network_of_graph(model: onnx.ModelProto, path: Path, sha256: str, stated: Foreign) -> Network:
    """The network of a graph that was read from `path`, or made from it."""
    where = path.name
    signature = replace(signature_of(model, stated, where), bgr=stated.bgr)
    known = _known(model, signature)
    size = facts_stated.input_of(stated, known, where)
    normalization = facts_stated.normalization_of(stated, known, size.channels, where)
    data = model.SerializeToString()
    noise = trial_images(size)
    try:
        run = Runner(data, signature)
        answers = run(noise)
    except CheckpointError as error:
        raise CheckpointError(
            f"{where}: it does not accept images of {size.height} x {size.width} ({error.message})",
            "give another --size",
        ) from error
    if answers.shape[1] < 2:
        raise CheckpointError(f"{where}: it returns one number for each image", "export a network with two classes")
    kind, activation = kind_of_answers(answers, stated.activation, where, last_operator(model.graph, signature.output))
    core = proved_core(
        model, run, size, noise, where, ends_in_softmax=(kind, activation) == ("probabilities", "softmax")
    )
    facts = Facts(
        name=plain_name(path.stem),
        model=path.name,
        parameters=sum(int(np.prod(tensor.dims)) for tensor in core.model.graph.initializer),
        classes=facts_stated.classes_of(stated, known, answers.shape[1], where),
        input=size,
        batch=core.batch,
        normalization=normalization,
        answers="logits" if core.taken_off else kind,
        activation=activation,
        thresholds=facts_stated.thresholds_of(stated, activation, answers.shape[1]),
        dataset=data_of(f"ONNX file {path.name}, made elsewhere by {model.producer_name or 'an unnamed tool'}"),
        sha256=sha256,
    )
    network = (_BehindSoftmax if core.taken_off else OnnxNetwork)(data, core.model, signature, facts)
    if core.batch is not None:
        network.remarks = (
            f"{where} gives its own answers in batches of {core.batch} only: its batch stays fixed, and is filled up",
        )
    return network


class _BehindSoftmax(OnnxNetwork):
    """A file that ends in a softmax: it returns probabilities, while its core ends before the softmax."""

    def reference(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._run(normalized(images, self.facts))


def _known(model: onnx.ModelProto, signature: Signature) -> Known:
    """Facts in the file: its size, and labels that tools write into its metadata."""
    from convexport.export.sources.onnx_labels import labels_in

    pixels = np.uint8 is signature.dtype
    return Known(
        classes=labels_in({item.key: item.value for item in model.metadata_props}),
        size=signature.size,
        channels=1 if signature.channels == 1 else 3,
        fixed=True,
        # A graph with uint8 input normalizes the pixels itself: it gets them from 0 to 255, unchanged.
        mean=(0.0,) * signature.channels if pixels else None,
        std=(1 / 255,) * signature.channels if pixels else None,
    )
