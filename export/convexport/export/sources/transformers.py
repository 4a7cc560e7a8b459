"""Origin: a folder of Hugging Face's transformers with an image classifier: `config.json`, weights, preprocessor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image
from torch import Tensor

from convexport.export.sources.foreign import Origin, network_of, plain_name
from convexport.export.sources.network import Network
from convexport.export.sources.outside import library
from convexport.export.sources.stated import Foreign, Known
from convexport.export.sources.torch_module import Transform
from convexport.runtime.errors import CheckpointError, first_line
from convexport.runtime.manifest import Filter

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_FILTERS: dict[int, Filter] = {2: "bilinear", 3: "bicubic"}
# ConvNeXt's processor keeps a share of a picture below this size, and stretches it from there on.
_CONVNEXT_STRETCHES = 384


def is_folder(what: str) -> bool:
    """Whether `what` is such a folder."""
    return (Path(what) / CONFIG).is_file()


def open_transformers(what: str, stated: Foreign) -> Network:
    """The network of a folder that `save_pretrained` wrote. No code of the folder runs, and nothing is downloaded.

    Raises:
        UnavailableError: transformers is not installed.
        UsageError: Something that has to be stated is not.
        CheckpointError: The folder holds no image classifier, or no weights as safetensors.
    """
    folder = Path(what)
    transformers = library("transformers")
    where = f"folder {what}"
    if not (folder / WEIGHTS).is_file() and not (folder / f"{WEIGHTS}.index.json").is_file():
        raise CheckpointError(
            f"{where} has no {WEIGHTS}; weights in pickles are not loaded, since that could run code",
            "save it again with network.save_pretrained(FOLDER)",
        )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        module, report = transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"{where} holds no image classifier ({first_line(error)})", None) from error
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{where}: its weights lack {missing[0]}{more}, as those of a network that was not trained to classify do",
            "train it to classify, and save it again",
        )
    processor = _processor(transformers, folder)
    known, remarks = _known(module.config, {} if processor is None else json.loads(processor.to_json_string()))
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    name = plain_name(folder.absolute().name)
    origin = Origin(
        f"transformers:{type(module).__name__}",
        name,
        f"folder {name}",
        digest,
        remarks,
        _transform(processor, bgr=known.bgr),
    )
    return network_of(module, origin, stated, known)


def _processor(transformers: Any, folder: Path) -> Any:
    """The folder's preprocessor, with its class's defaults; None where the folder has none."""
    if not (folder / PREPROCESSOR).is_file():
        return None
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{folder / PREPROCESSOR} describes no preprocessor ({first_line(error)})") from error


def _transform(processor: Any, *, bgr: bool) -> Transform | None:
    """The preprocessor's own way from an image to pixels, red first."""
    if processor is None:
        return None

    def transform(image: Image) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels.flip(0) if bgr else pixels

    return transform


def _known(config: Any, found: Mapping[str, Any]) -> tuple[Known, tuple[str, ...]]:
    """Framing, normalization and labels as the preprocessor and the configuration state them."""
    size = getattr(config, "image_size", None)
    channels: Literal[1, 3] = 1 if getattr(config, "num_channels", 3) == 1 else 3
    classes = _labels(config)
    if not found:
        return Known(classes=classes, size=(size, size) if isinstance(size, int) else None, channels=channels), ()
    shape, remarks = _shape(found)
    own, flipped = found.get("resample"), bool(found.get("do_flip_channel_order"))
    if found.get("do_resize", True) and own not in _FILTERS:
        remarks.append(f"its preprocessor scales pictures by Pillow's filter {own}; bicubic is taken in its place")
    mean, std = _normalization(found, channels)
    return Known(
        classes=classes,
        mean=mean[::-1] if flipped else mean,
        std=std[::-1] if flipped else std,
        filter=_FILTERS.get(own, "bicubic") if isinstance(own, int) else "bicubic",
        channels=channels,
        bgr=flipped,
        **shape,
    ), tuple(remarks)


def _labels(config: Any) -> tuple[str, ...]:
    """`id2label` in the order of the outputs; none where transformers made the labels up itself."""
    labels = {int(index): str(label) for index, label in config.id2label.items()}
    if sorted(labels) != list(range(len(labels))):
        return ()
    found = tuple(labels[index] for index in range(len(labels)))
    return () if found == tuple(f"LABEL_{index}" for index in range(len(labels))) else found


def _shape(found: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Size, framing and the share that a crop keeps, as fields of `Known`."""
    kind = str(found.get("image_processor_type", ""))
    size = found.get("size")
    sides: dict[str, Any] = dict(size) if isinstance(size, Mapping) else {"height": size, "width": size}
    shortest = sides.get("shortest_edge")
    cut = found.get("crop_size") if found.get("do_center_crop") else None
    target = None if cut is None else (cut["height"], cut["width"]) if isinstance(cut, Mapping) else (cut, cut)
    if kind.startswith("ConvNext") and shortest is not None:
        if shortest >= _CONVNEXT_STRETCHES:
            return {"size": (shortest, shortest), "framing": "stretch"}, []
        return _cut(int(shortest / (found.get("crop_pct") or 1.0)), (shortest, shortest))
    if kind.startswith("Levit") and shortest is not None:
        shortest = int(256 / 224 * shortest)
    if shortest is not None:
        return _cut(shortest, target or (shortest, shortest))
    stretched = (sides["height"], sides["width"])
    if target is None or target == stretched:
        return {"size": stretched, "framing": "stretch"}, []
    shape, remarks = _cut(min(stretched), target)
    words = f"{stretched[0]} x {stretched[1]} and cuts {target[0]} x {target[1]} out of the middle"
    return shape, [*remarks, f"its preprocessor stretches a picture to {words}; here its sides are scaled alike"]


def _cut(shortest: int, target: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
    share = min(target) / shortest
    if share > 1:
        what = f"its preprocessor scales a picture to {shortest} pixels and adds a black border to {min(target)}"
        return {"size": target}, [f"{what}; here it fills the input"]
    return {"size": target, "crop": share}, []


def _normalization(found: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels from 0 to 1."""
    mean, std = (0.0,) * channels, (1.0,) * channels
    if found.get("do_normalize", True):
        mean, std = tuple(found["image_mean"]), tuple(found["image_std"])
    if found.get("include_top"):  # EfficientNet's divides by the deviation once more
        std = tuple(value * value for value in std)
    if found.get("rescale_offset"):  # pixels from -1 to 1
        mean = tuple(value + 1 for value in mean)
    factor = float(found.get("rescale_factor") or 1 / 255) if found.get("do_rescale", True) else 1.0
    unit = 255 * factor
    return tuple(value / unit for value in mean), tuple(value / unit for value in std)
