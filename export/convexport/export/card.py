"""The model card: a bundle's `README.md`, made from its manifest alone."""

from __future__ import annotations

import shlex

from convexport.export import own_transform
from convexport.runtime.manifest import Accuracy, Manifest, Verification
from convexport.runtime.precision import PRECISIONS
from convexport.runtime.text import markdown, printable

INK = " Images of dark ink on light paper are inverted, and the record says so."
CLASSES_SHOWN = 20
FIRST_READER = "0.2"  # the first version that reads manifest 3
FRAMING = {
    "crop": "the shorter side is scaled and the middle is cut out",
    "resize-crop": "the shorter side is scaled and the middle is cut out at whole pixels, as torchvision does",
    "pad": "the longer side is scaled and the rest is black",
    "stretch": "both sides are scaled",
}


def card(manifest: Manifest) -> str:
    """Markdown: what the model does, how well, how to run it, its limits, and its origin."""
    labels = [markdown(label) for label in manifest.classes]
    dataset = manifest.provenance.dataset
    title, provenance = markdown(dataset.title), markdown(dataset.provenance)
    bundle = shlex.quote(printable(manifest.name))
    return "\n".join(
        [
            f"# {markdown(manifest.name)}",
            "",
            f"An image classifier: {manifest.model.name}, {manifest.model.parameters:,} parameters, {title}.",
            _classes(labels),
            "",
            "## How well it does",
            "",
            *_variants(manifest),
            "",
            *_accuracy(manifest),
            "",
            "## How to run it",
            "",
            "```sh",
            *_install(manifest),
            f"classify --bundle {bundle} photo.png",
            f"classify --bundle {bundle} --self-test   # this device against the golden images",
            "```",
            "",
            "## Input",
            "",
            _input(manifest),
            "",
            "## What it cannot do",
            "",
            _answers(manifest),
            "Its probabilities are valid only for images like those that it was trained on.",
            "",
            "## Where it comes from",
            "",
            f"- Data: {title}. {provenance}. The terms of the data set apply to the network as well.",
            f"- Checkpoint: SHA-256 `{manifest.provenance.checkpoint_sha256}`",
            *([f"- Code: commit {markdown(manifest.provenance.git_commit)}"] if manifest.provenance.git_commit else []),
            f"- Versions: {markdown(_versions(manifest))}",
            "",
        ]
    )


def _install(manifest: Manifest) -> list[str]:
    """The commands that install what runs this bundle, in the form that fits the convexport that wrote it."""
    extras = {"cpu": "a device with a CPU"}
    if "fp16" in manifest.variants or manifest.engines:
        extras["gpu"] = "or a machine with an NVIDIA GPU"
    for flavor in dict.fromkeys(engine.key.flavor for engine in manifest.engines):
        extras[f"gpu,{flavor.replace('_', '-')}"] = "or such a machine with this bundle's TensorRT engines"
    released = ".dev" not in manifest.provenance.versions.get("export.convexport", "")
    form = f"pip install 'convexport[{{}}]>={FIRST_READER}'" if released else "pip install '.[{}]'"
    commands = {form.format(extra): what for extra, what in extras.items()}
    width = max(map(len, commands))
    unreleased = "# this version is on no package index: install it in a clone of convexport's repository"
    return [*([] if released else [unreleased]), *(f"{line:<{width}}   # {what}" for line, what in commands.items())]


def _answers(manifest: Manifest) -> str:
    """What it answers where nothing fits."""
    if manifest.activation == "sigmoid":
        return "An image has each label whose probability reaches its threshold, several of them or none."
    return "It always answers with one of its classes, even if the image shows none of them."


def _classes(labels: list[str]) -> str:
    """The labels, or the first of them where a list of all would hide the rest of the page."""
    if len(labels) <= CLASSES_SHOWN:
        return f"Its {len(labels)} classes: {', '.join(labels)}."
    first = ", ".join(labels[:CLASSES_SHOWN])
    return (
        f"Its {len(labels):,} classes, in the order of `labels.txt`: {first} and {len(labels) - CLASSES_SHOWN:,} more."
    )


def _versions(manifest: Manifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in manifest.provenance.versions.items())


def _variants(manifest: Manifest) -> list[str]:
    lines = [
        "| variant | size | for | run by | accuracy | agreement with torch | largest difference of a probability |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for name, graph in manifest.graphs.items():
        size = f"{manifest.files[graph.file].bytes:,} bytes"
        lines += [
            f"| {name} | {size} | {_purpose(name)} | {found.backend} on {found.device} | {accuracy_text(found)} | "
            f"{found.agreement:.2%} | {found.max_abs_difference:.2g} |"
            for found in graph.verifications
        ]
    return lines


def _purpose(name: str) -> str:
    """What a graph is for, by its name: a precision, or a precision `for TensorRT`."""
    return PRECISIONS[name].purpose if name in PRECISIONS else "GPU, in engines built from it"


def accuracy_text(found: Verification) -> str:
    """`98.61 %`, or `not measured`."""
    if found.mean_average_precision is not None:
        return f"mean average precision {found.mean_average_precision:.4f}"
    return "not measured" if found.accuracy is None else f"{found.accuracy:.2%}"


def _accuracy(manifest: Manifest) -> list[str]:
    found = next(iter(manifest.variants.values())).verification
    where = markdown(found.images_kind)
    lines = [f"Compared with the original network in float32 on {where}, through the runtime that serves the files."]
    if any("fp16-storage-emulation" in v.verification.method for v in manifest.variants.values()):
        device = manifest.variants["fp16"].verification.device
        lines.append(
            "FP16 ran on a GPU as well as in emulation."
            if device != "cpu"
            else "No GPU was available: FP16 was emulated by rounding the weights and every stored tensor through FP16."
        )
    if found.accuracy is None:
        lines.append(f"Accuracy: {recorded(manifest.provenance.accuracy)}.")
    return lines


def recorded(accuracy: Accuracy) -> str:
    """The accuracy that the checkpoint states, for exports that could not measure it again."""
    if accuracy.test is None:
        return "not measured; the network states no accuracy"
    return f"{accuracy.test:.2%} on {accuracy.test_images:,} test images, measured at training, not at export"


def _own_transform(manifest: Manifest) -> str:
    """How the framing compares with the origin's own transform."""
    found = manifest.own_transform
    if found is None:
        return ""
    text = own_transform.line(found)
    return f" {text[0].upper()}{text[1:]}."


def _input(manifest: Manifest) -> str:
    size = manifest.input
    color = "RGB" if size.channels == 3 else "gray"
    return (
        f"An image of any size. It is resized to {size.width} x {size.height} {color} pixels: {FRAMING[size.framing]}."
        + (INK if size.ink == "light-on-dark" else "")
        + _own_transform(manifest)
        + " Scaling, mean and standard deviation are inside the network's file."
    )
