"""`Answering`: a network's answers to images normalized in any way, fast: its float32 graph on ONNX Runtime."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexport.export.passes.at_once import batches
from convexport.export.sources.network import Facts, Network
from convexport.export.sources.onnx_file import normalized
from convexport.runtime.devices import import_library

_BATCH = 16
_PROOF = 4
_ALLOWED = 1e-3


class Answering:
    """Asks a network many times, each time with other facts.

    Its graph is faster than torch. Where the graph does not answer as the origin does, the origin is asked.

    Args:
        network: The network.
        images: Some of the images, uint8 [N, H, W, C], on which graph and origin are compared.
    """

    def __init__(self, network: Network, images: NDArray[np.uint8]) -> None:
        self._network = network
        self._session = self._graph()
        some = images[:_PROOF]
        found = self(some, network.facts)
        if np.abs(np.exp(found) - network.reference(some)).max() > _ALLOWED:
            self._session = None

    def _graph(self) -> Any:
        ort = import_library("onnxruntime")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may use this machine, too
        return ort.InferenceSession(
            self._network.core().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: NDArray[np.uint8], facts: Facts) -> NDArray[np.float64]:
        """uint8 [N, H, W, C] -> the logarithm of each probability, float64 [N, K]."""
        if self._session is None:
            network = copy.copy(self._network)
            network.facts = facts
            return _logs(network.reference(images))
        name = self._session.get_inputs()[0].name
        parts = batches(images, _BATCH, facts.batch)
        rows = [self._session.run(None, {name: normalized(part, facts)})[0] for part in parts]
        found = np.concatenate(rows)[: len(images)]
        if facts.answers == "probabilities":
            return _logs(found)
        scaled = np.nan_to_num(found.astype(np.float64) / facts.normalization.temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def _logs(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.log(np.clip(np.nan_to_num(probabilities.astype(np.float64)), 1e-30, None)))
