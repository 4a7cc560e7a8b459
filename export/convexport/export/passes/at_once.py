"""How many images a graph computes at once, so that its values do not need gigabytes where the images are large."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from convexport.export.passes.describe import INPUT
from convexport.export.passes.dynamic_batch import static_batch

# Values of the largest tensor of one batch, 32 MiB as float32. A graph whose values are all kept for a while takes 15
# to 30 times as much: EfficientNet-Lite0 at 224 pixels with emulated FP16 storage took 4.4 GB in batches of 64.
VALUES_AT_ONCE = 1 << 23


def images_at_once(model: onnx.ModelProto, most: int, values: int = VALUES_AT_ONCE) -> int:
    """The size of a batch whose largest tensor has no more than `values` values; at least 1, and `most` at most.

    The size that the graph takes, where its batch is fixed. A dimension that the graph does not tell counts as 1.
    """
    fixed = static_batch(model)
    if fixed is not None:
        return fixed
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    graph = alone.graph
    graph.ClearField("value_info")
    for value in graph.input:
        if value.name == INPUT:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(alone, data_prop=True).graph
    sizes: list[int] = [
        prod(max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    ]
    return max(1, min(most, values // max(sizes)))


def batches(images: NDArray[np.uint8], size: int, fixed: int | None) -> Iterator[NDArray[np.uint8]]:
    """Images [N, H, W, C] in batches of `size`, or of the `fixed` size, the last of which the first images fill up.

    The answers to these are surplus rows at the end.
    """
    size = fixed or size
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        if fixed and len(batch) < fixed:
            batch = images[np.arange(start, start + fixed) % len(images)]
        yield batch
