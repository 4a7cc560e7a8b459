"""The export's table of precisions: how each graph is made and how much it may differ. One row per precision.

The runtime's table has the same keys. A new precision is a row there, a row here, and the pass that makes its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from convexport.export import element_types, graph, keeping
from convexport.export.element_types import ElementTypes
from convexport.export.keeping import Goal
from convexport.export.limits import Limits
from convexport.export.passes import quantize
from convexport.export.passes.quantize import FOR_CPU, FOR_TENSORRT, Form, Int8Options
from convexport.export.sources.network import Network
from convexport.runtime.precision import Precision

# Every bundle contains it, the others are made from it, and the checkpoint's stated accuracy is compared with it.
BASE: Precision = "fp32"


@dataclass(frozen=True)
class Material:
    """The material that graphs are made from.

    Attributes:
        network: The network, of any origin.
        calibration_images: Returns at most a given number of images to calibrate 8-bit precisions on, and a
            description of them.
        calibration: How a precision of 8 bits is calibrated.
        for_tensorrt: Whether the bundle contains replacements for graphs that TensorRT refuses.
        base: The fp32 graph, after it was made.
        goal: The limits and images for finding nodes to keep in float; None keeps the named ones only.
        keep_float: Nodes that stay float32 in half.
        max_loss: The accuracy that int8 may lose; None means the limit of the table.
    """

    network: Network
    calibration_images: Callable[[int], tuple[NDArray[np.uint8], str]]
    calibration: Int8Options
    for_tensorrt: bool
    base: bytes = b""
    goal: Goal | None = None
    keep_float: tuple[str, ...] = ()
    max_loss: float | None = None


@dataclass(frozen=True)
class Built:
    """One ONNX file, and what is known about it before the gate. TensorRT uses `engine_graph` instead."""

    data: bytes
    types: ElementTypes
    details: dict[str, Any] = field(default_factory=dict)
    engine_graph: Built | None = None


@dataclass(frozen=True)
class PrecisionExport:
    """Export's columns of the precision table.

    Attributes:
        make: Makes the graph.
        limits: How much it may differ from torch float32.
        triton_kind: Where Triton runs the ONNX file.
        stores_half: Whether a GPU stores its values in half precision, which the gate has to emulate on a CPU.
        engine_instead: The precision whose engine replaces this one's; None if it always has its own.
    """

    make: Callable[[Material], Built]
    limits: Limits
    triton_kind: str
    stores_half: bool = False
    engine_instead: Precision | None = None


def build(material: Material, wanted: Collection[Precision]) -> dict[Precision, Built]:
    """Makes the base and the `wanted` precisions, in the table's order.

    Raises:
        DatasetError: One of them needs images for calibration, and there are none.
    """
    built: dict[Precision, Built] = {BASE: EXPORTS[BASE].make(material)}
    material = replace(material, base=built[BASE].data)
    for name in chosen(wanted)[1:]:
        built[name] = EXPORTS[name].make(material)
    return built


def chosen(wanted: Collection[Precision]) -> list[Precision]:
    """The base and the `wanted` precisions, in the table's order."""
    return [name for name in EXPORTS if name == BASE or name in wanted]


def _fp32(material: Material) -> Built:
    return _built(graph.to_onnx(material.network))


def _fp16(material: Material) -> Built:
    def make(keep: Collection[str]) -> bytes:
        return graph.to_half(material.base, material.network.facts, keep)

    keep, goal = material.keep_float, material.goal
    if goal is not None:
        keep = keeping.half_nodes(material.base, make, replace(goal, limits=EXPORTS["fp16"].limits))
    return _built(make(keep), keep, **({"kept_float": list(keep)} if keep else {}))


def _int8(material: Material) -> Built:
    """The graph for CPUs and the one for TensorRT, calibrated on the same images."""
    options = material.calibration
    images, kind = material.calibration_images(options.images)
    details: dict[str, Any] = {"calibration": msgspec.to_builtins(options), "calibrated_on": kind}
    if material.goal is not None:
        goal = replace(material.goal, limits=limits_of("int8", material.max_loss))
        options, data, found = _kept_float(material.base, images, options, goal)
        details |= found
    else:
        data = quantize.quantize(material.base, images, options, FOR_CPU)
    engine_graph = None
    if material.for_tensorrt:
        for_tensorrt = quantize.quantize(material.base, images, options, FOR_TENSORRT)
        engine_graph = _quantized(for_tensorrt, material.base, options, FOR_TENSORRT)
    return replace(_quantized(data, material.base, options, FOR_CPU, **details), engine_graph=engine_graph)


def _kept_float(
    base: bytes, images: NDArray[np.uint8], options: Int8Options, goal: Goal
) -> tuple[Int8Options, bytes, dict[str, Any]]:
    """The options with the layers that have to stay float for the loss to be allowed, the graph, and what that costs.

    The graph is the one that the search measured. The quantizer would still quantize what a layer reads that it leaves
    out, where the node that makes it is quantized.
    """
    whole = quantize.quantize(base, images, options, FOR_CPU)
    found_whole = keeping.answers(whole, goal.images)
    loss = goal.loss(found_whole)
    if goal.holds(found_whole):
        return options, whole, {}
    keep = keeping.int8_nodes(base, whole, goal)
    mixed = keeping.dequantized(whole, base, keep)
    seconds = [keeping.seconds(data, goal.images) for data in (whole, mixed)]
    found = {
        "kept_float": list(keep),
        "loss_of_int8_alone": loss,
        "times_as_long_as_int8_alone": round(seconds[1] / seconds[0], 3),
    }
    return replace(options, exclude=(*options.exclude, *keep)), mixed, found


def limits_of(precision: Precision, max_loss: float | None) -> Limits:
    """What a precision may differ; `max_loss` is the accuracy that int8 may lose, where that is stated."""
    limits = EXPORTS[precision].limits
    return replace(limits, accuracy_loss=max_loss) if precision == "int8" and max_loss is not None else limits


def _quantized(data: bytes, base: bytes, options: Int8Options, form: Form, **details: Any) -> Built:
    """What is to be known of an INT8 graph, made with these options of an fp32 one."""
    products = () if form.products else quantize.products_of(onnx.load_from_string(base))
    if products:
        details["products_in_float"] = len(products)
    return _built(data, (*options.exclude, *products), **details, reduce_range=form.reduce_range)


def _built(data: bytes, kept: Collection[str] = (), **details: Any) -> Built:
    types = element_types.element_types(data, kept)
    return Built(data, types, {"element_types": msgspec.to_builtins(types), **details})


EXPORTS: dict[Precision, PrecisionExport] = {
    "fp32": PrecisionExport(_fp32, Limits(0.001, 0.001, 1e-4, 1e-5, 1e-5, 1e-3), "KIND_AUTO", engine_instead="fp16"),
    "fp16": PrecisionExport(_fp16, Limits(0.002, 0.005, 0.05, 0.002, 0.01, 0.01), "KIND_GPU", stores_half=True),
    "int8": PrecisionExport(_int8, Limits(0.010, None, 0.90, 0.020, 0.10, 0.05), "KIND_CPU"),
}
