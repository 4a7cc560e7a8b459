"""The output of `convexport`: a summary of the bundle, or the gate's measurements after a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convexport.cli import terminal

if TYPE_CHECKING:
    from convexport.export.diagnosis import Diagnosis
    from convexport.export.gate import Refusal
    from convexport.export.pipeline import ExportResult
    from convexport.runtime.manifest import Verification


def print_summary(result: ExportResult) -> None:
    """The gate's measurements, the engines, the flips, and the next command."""
    manifest = result.manifest
    found = manifest.variants["fp32"].verification
    terminal.result(f"compared with the original network in float32 on {found.images_kind}")
    rows = [
        (
            name,
            f"{manifest.files[graph.file].bytes:,}",
            f"{check.backend} on {check.device}",
            _accuracy(check),
            _share(check.agreement),
            f"{check.max_abs_difference:.2g}",
            "" if check.images_per_second is None else f"{check.images_per_second:,.0f}",
        )
        for name, graph in manifest.graphs.items()
        for check in graph.verifications
    ]
    header = ("variant", "bytes", "run by", "accuracy", "agreement", "max |Δp|", "images/s on this CPU")
    for line in terminal.table(header, rows):
        terminal.result(f"  {line}")
    for engine in manifest.engines:
        key = engine.key
        where = "not run, because there is no such GPU here" if engine.verification is None else "run on this GPU"
        terminal.result(
            f"engine      {engine.file}  {manifest.files[engine.file].bytes:,} bytes, {key.precision} for compute "
            f"capability {', '.join(key.compute_capabilities)}, {where}"
        )
    for name, graph in manifest.graphs.items():
        for check in graph.verifications:
            _flips(f"{name} by {check.backend}", check)
    if found.accuracy is None and found.mean_average_precision is None:
        from convexport.export.card import recorded

        terminal.result(f"accuracy    {recorded(manifest.provenance.accuracy)}")
    terminal.result(f"bundle      {result.path}  ({result.seconds:.0f} s)")
    terminal.result(f"next: classify --bundle {result.path} photo.png")


def _flips(name: str, found: Verification) -> None:
    shown = [f"{flip.image} ({flip.torch} became {flip.variant})" for flip in found.flips[:5]]
    if shown:
        more = f", and {found.flips_total - len(shown)} more in the manifest" if found.flips_total > len(shown) else ""
        terminal.result(f"flips       {name}: {', '.join(shown)}{more}")


def _accuracy(found: Verification) -> str:
    precision = found.mean_average_precision
    return _share(found.accuracy) if precision is None else f"mAP {precision:.4f}"


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"


def print_refusal(refusal: Refusal, *, in_json: bool) -> None:
    """The gate's measurements, with the failed ones marked, and the causes that were tried."""
    result, diagnosis = refusal.result, refusal.diagnosis
    if in_json:
        causes = {} if diagnosis is None else {"diagnosis": diagnosis}
        terminal.result(as_json({"refused": True, "variants": result.everything, **causes}))
        return
    rows = [
        (
            precision,
            measure.name,
            f"{measure.value:.6g}",
            f"{measure.relation} {measure.limit:.6g}",
            "passed" if measure.passed else "FAILED",
        )
        for precision, found in result.everything.items()
        for measure in found.measures
    ]
    for line in terminal.table(("variant", "measure", "value", "limit", ""), rows):
        terminal.result(line, "red" if line.endswith("FAILED") else None)
    if diagnosis is not None:
        print_diagnosis(diagnosis, in_json=False)


def print_diagnosis(diagnosis: Diagnosis, *, in_json: bool) -> None:
    """What was tried, the likeliest first, and what follows from it."""
    if in_json:
        terminal.result(as_json(diagnosis))
        return
    rows = [
        (
            row.cause,
            f"{row.right / row.images:.1%}",
            f"{row.right:,} of {row.images:,}",
            f"{row.log_loss:.3f}",
            f"+{row.better} -{row.worse}",
            f"{row.p_value:.2g}",
            "" if row.told_apart else "not distinguishable from the first",
        )
        for row in diagnosis.rows
    ]
    for line in terminal.table(("tried", "accuracy", "right", "log loss", "against stated", "p", ""), rows):
        terminal.result(line)
    terminal.result(f"verdict     {diagnosis.verdict}" + (f"; {diagnosis.fix}" if diagnosis.fix else ""))


def as_json(value: object) -> str:
    """One line of JSON, the same for the same value."""
    import msgspec

    return msgspec.json.encode(value, order="deterministic").decode()
