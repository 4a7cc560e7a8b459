"""What a manifest's types cannot express: English labels, equal lengths, a hash for every named file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convexport.runtime.text import counted

if TYPE_CHECKING:
    from convexport.runtime.manifest import Manifest


def check(manifest: Manifest) -> None:
    """Raises `ValueError` with the key's path: no English labels, unequal lengths, a file that is not listed."""
    _check_labels(manifest)
    _check_files(manifest)


def _refuse(path: str, found: str, expected: str) -> None:
    raise ValueError(f"`{path}` is {found}, expected {expected}")


def _check_labels(manifest: Manifest) -> None:
    if "en" not in manifest.labels:
        _refuse("$.labels", f"in {sorted(manifest.labels)}", "`en` among them")
    count = len(manifest.classes)
    if not count:
        _refuse("$.labels.en", "empty", "at least one label")
    for language, labels in manifest.labels.items():
        if len(labels) != count:
            _refuse(f"$.labels.{language}", counted(len(labels), "label"), f"{count}")
    if len(manifest.thresholds) not in {0, count}:
        _refuse("$.thresholds", counted(len(manifest.thresholds), "value"), f"{count}, or none")
    if not manifest.variants:
        _refuse("$.variants", "empty", "at least one precision")
    channels = manifest.input.channels
    for key, values in (("mean", manifest.normalization.mean), ("std", manifest.normalization.std)):
        if len(values) != channels:
            _refuse(f"$.normalization.{key}", counted(len(values), "value"), f"{channels}")
    for index, golden in enumerate(manifest.golden):
        if len(golden.probabilities) != count:
            _refuse(f"$.golden[{index}].probabilities", counted(len(golden.probabilities), "value"), f"{count}")


def _check_files(manifest: Manifest) -> None:
    named = [(f"$.variants.{name}.file", variant.file) for name, variant in manifest.variants.items()]
    named += [(f"$.variants.{name}.engine_graph.file", found.engine_file) for name, found in manifest.variants.items()]
    named += [(f"$.engines[{index}].file", engine.file) for index, engine in enumerate(manifest.engines)]
    named += [(f"$.golden[{index}].file", golden.file) for index, golden in enumerate(manifest.golden)]
    for path, file in named:
        if file not in manifest.files:
            _refuse(path, f"{file!r}", "a key of `$.files`")
    for file in manifest.files:
        parts = file.split("/")
        if not all(parts) or any(part in {".", ".."} or set(part) & set("\\:\0") for part in parts):
            _refuse("$.files", f"the path {file!r}", "a relative path inside the bundle")
