"""`to_onnx`: a network of any origin -> the bytes of an ONNX file that takes images and returns probabilities.

The graph takes uint8 images `images` [batch, H, W, C] and returns `probabilities` float32 [batch, K]; scaling, mean,
standard deviation, temperature and softmax are inside. The same network always gives the same bytes: no date, no local
path, no stack trace.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import onnx

from convexport.export.passes.base import GraphPass, apply
from convexport.export.passes.describe import Describe
from convexport.export.passes.fold_batch_norm import fold_in_graph
from convexport.export.passes.half import Half
from convexport.export.passes.shell import Shell
from convexport.export.passes.strip import strip
from convexport.export.sources.network import Facts, Network

FloatPrecision = Literal["fp32", "fp16"]


def to_onnx(network: Network, precision: FloatPrecision = "fp32") -> bytes:
    """Wraps a network's graph in the shell and returns the bytes of one ONNX file.

    Args:
        network: Of any origin.
        precision: With `fp16` the network runs in half precision inside a float32 shell.

    Raises:
        CheckpointError: The network has no graph.
        UsageError: Its graph cannot be brought to `precision`.
    """
    facts = network.facts
    passes: tuple[GraphPass, ...] = (fold_in_graph, Shell(facts), strip, Describe(facts, "fp32"))
    base = apply(passes, network.core())
    return base if precision == "fp32" else to_half(base, facts)


def to_half(base: bytes, facts: Facts, keep: Collection[str] = ()) -> bytes:
    """The same file in half: the network computes in float16 inside a float32 shell.

    Args:
        base: The file in float32.
        facts: What is known of the network.
        keep: Names of nodes that stay float32.

    Raises:
        UsageError: The graph cannot be brought to half, or has no such node.
    """
    passes: tuple[GraphPass, ...] = (Half(frozenset(keep)), strip, Describe(facts, "fp16"))
    return apply(passes, onnx.load_from_string(base))
