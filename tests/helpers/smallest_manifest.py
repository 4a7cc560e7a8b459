"""A manifest with one variant and one golden image."""

from __future__ import annotations

import msgspec

from convexport.export.writer import Draft
from convexport.runtime import manifest as m


def smallest_manifest() -> m.Manifest:
    """Names `model.fp32.onnx` and `golden/0.png`; their sizes and hashes are to be filled in."""
    verification = m.Verification(
        method=("runtime",),
        backend="onnxruntime",
        device="cpu",
        images=1,
        images_kind="one image",
        accuracy=1.0,
        torch_accuracy=1.0,
        agreement=1.0,
        max_abs_difference=0.0,
        measures=(m.Measure(name="max |Δp|", value=0.0, relation="<=", limit=1e-4, passed=True),),
    )
    unknown = m.File(bytes=0, sha256="0" * 64)
    return m.Manifest(
        format=m.FORMAT,
        name="net",
        model=m.Model(name="lenet5", parameters=1),
        input=m.Input(height=28, width=28, channels=1),
        normalization=m.Normalization(mean=(0.5,), std=(0.5,)),
        labels={"en": ("no", "yes")},
        variants={
            "fp32": m.Variant(
                file="model.fp32.onnx", opset=20, ir_version=10, golden_tolerance=1e-3, verifications=(verification,)
            )
        },
        golden=(m.Golden(file="golden/0.png", label="yes", probabilities=(0.25, 0.75)),),
        provenance=m.Provenance(
            checkpoint_sha256="0" * 64,
            dataset=m.Dataset(name="none", title="nothing", provenance="made up"),
            recipe={},
            seed=None,
            git_commit=None,
            versions={},
            accuracy=m.Accuracy(),
        ),
        files={"model.fp32.onnx": unknown, "golden/0.png": unknown},
    )


def fill(draft: Draft, text: str = "first") -> None:
    """Writes the files of the smallest manifest, the graph being `text`, and the manifest."""
    draft.write("model.fp32.onnx", text.encode())
    draft.write("golden/0.png", b"picture")
    draft.describe(msgspec.structs.replace(smallest_manifest(), files=draft.files))
