"""Chooses back end and precision: `auto` takes the best that works, a name is used or an error raised.

What was measured on one machine is the answer of another only when that machine has proved it: whatever serves has
passed the golden images there (`proof`), also where its precision was asked for by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from convexport.runtime.backends import proof, registry
from convexport.runtime.backends.base import Backend
from convexport.runtime.backends.registry import BackendSpec
from convexport.runtime.bundle import Bundle
from convexport.runtime.devices import Device, gpus, processor_kind
from convexport.runtime.errors import (
    BundleError,
    ConvexportError,
    DeviceError,
    GateRefused,
    UnavailableError,
    UsageError,
)
from convexport.runtime.manifest import Manifest
from convexport.runtime.options import Options
from convexport.runtime.precision import PRECISIONS, Precision

_FIX = "choose another back end or precision by name"
MARGIN = 1.10
"""How much faster a choice must have been measured to replace the plain one: less is noise."""
ANOTHER_LIBRARY = 1.25
"""And how much faster, if it takes another library: OpenVINO starts 0.3 s later, in which VGG19 answers 200 images."""


@dataclass(frozen=True)
class Candidate:
    """A back end on a device in a precision, and the reason for its place."""

    spec: BackendSpec
    device: Device
    precision: Precision
    why: str = ""


def create(bundle: Bundle, options: Options) -> tuple[Backend, str]:
    """The best back end that fits the options and works here, and a sentence about the choice and its reason.

    Raises `UsageError` for an unknown name, `UnavailableError` where what was asked for is not there, `BundleError`
    where the bundle lacks the precision, `GateRefused` where none of them gives the answers of the export here.
    """
    refusals: list[str] = []
    broken: set[tuple[str, Device]] = set()
    last: ConvexportError | None = None
    for candidate in _candidates(bundle.manifest, options, refusals):
        spec, device = candidate.spec, candidate.device
        if (spec.name, device) in broken:
            continue
        try:
            backend, origin = spec.open(bundle, device, candidate.precision, options)
        except UnavailableError as error:
            broken.add((spec.name, device))
            refusals.append(error.message)
            last = error
            continue
        failure = proof.failure(bundle, backend) if options.prove else None
        if failure:
            backend.close()
            refusals.append(failure)
            last = GateRefused(f"{bundle.manifest.name}: {failure}", _FIX)
            continue
        taken = f"{spec.name} on {device} in {backend.precision}{candidate.why}"
        return backend, "; ".join([taken, *filter(None, [origin]), *refusals])
    # After the last candidate, its own error is raised: it was asked for by name.
    assert last is not None
    raise last


def everything(manifest: Manifest, options: Options) -> list[Candidate]:
    """Every back end, device and precision that the options allow, whether or not it works here.

    Raises `UsageError` for an unknown name, `BundleError` where the bundle lacks the precision.
    """
    found: list[Candidate] = []
    for device, specs in _places(options, []):
        held = [name for name in PRECISIONS if name in manifest.variants]
        precisions = held if options.precision == "auto" else _precisions(manifest, device, options.precision)
        found += [Candidate(spec, device, precision) for spec in specs for precision in precisions]
    return found


def choose_precision(manifest: Manifest, device: Device, precision: str = "auto") -> Precision:
    """The precision to run on a device, without measurements; a name is used, or an error says why not.

    Raises `BundleError` with the names in the bundle.
    """
    return _precisions(manifest, device, precision)[0]


def _candidates(manifest: Manifest, options: Options, refusals: list[str]) -> Iterator[Candidate]:
    """The candidates, best first. If no device was named, `refusals` gets the reason why no GPU comes first."""
    for device, specs in _places(options, refusals):
        precisions = _precisions(manifest, device, options.precision)
        asked = ", as asked" if options.precision != "auto" else ""
        plain = [Candidate(spec, device, name, asked) for spec in specs for name in precisions]
        if device.kind == "cpu":
            yield from _by_rate(manifest, plain, options)
        else:
            # The precision that a GPU runs best comes first; its back ends differ less.
            yield from sorted(plain, key=lambda candidate: precisions.index(candidate.precision))


def _places(options: Options, refusals: list[str]) -> list[tuple[Device, list[BackendSpec]]]:
    """Devices, best first, with the back ends that may run there."""
    named = None if options.device == "auto" else Device.parse(options.device)
    wanted = None
    if options.backend != "auto":
        assert isinstance(options.backend, str)
        wanted = registry.find(options.backend)
        if named and not wanted.runs_on(named):
            others = ", ".join(spec.name for spec in registry.on(named.kind))
            raise UsageError(
                f"back end {wanted.name} does not run on {named.kind}, only on {' and '.join(wanted.extras)}",
                f"leave out the device, or choose another back end: {others}",
            )
    there = [named] if named else []
    if not named and (wanted is None or "cuda" in wanted.extras):
        try:
            there.append(Device("cuda", gpus()[0].index))
        except DeviceError as error:
            if wanted and set(wanted.extras) == {"cuda"}:
                there.append(Device("cuda"))  # the back end itself says what is missing
            refusals.append(error.message)
    if not named and (wanted is None or "cpu" in wanted.extras):
        there.append(Device("cpu"))
    return [(device, [wanted] if wanted else registry.on(device.kind)) for device in there]


def _precisions(manifest: Manifest, device: Device, precision: str) -> list[Precision]:
    held = [name for name in PRECISIONS if name in manifest.variants]
    if precision == "auto":
        rank = {name: spec.cuda_rank if device.kind == "cuda" else spec.cpu_rank for name, spec in PRECISIONS.items()}
        exact = [name for name in held if rank[name] <= rank["fp32"]] if device.kind == "cuda" else held
        return sorted(exact or held, key=rank.__getitem__)
    if precision not in held:
        raise BundleError(
            f"{manifest.name}: no {precision} variant in this bundle, which contains {', '.join(held)}",
            "choose one of these, or export it again with that precision",
        )
    return [precision]


def _by_rate(manifest: Manifest, plain: list[Candidate], options: Options) -> Iterator[Candidate]:
    """The plain candidates of a CPU, after those that the export measured clearly faster, the fastest first."""
    if options.backend == "auto":
        base = next(candidate for candidate in plain if not candidate.spec.measured_only)
    else:
        base = plain[0]
    kind = processor_kind()
    rates = {id(candidate): _rate(manifest, candidate, kind) or 0.0 for candidate in plain}

    def price(candidate: Candidate) -> float:
        return 1.0 if candidate.spec == base.spec else ANOTHER_LIBRARY

    least = rates[id(base)]
    faster = [c for c in plain if c is not base and least and rates[id(c)] >= max(MARGIN, price(c)) * least]
    # Among themselves, too, another library has to be worth its price.
    faster.sort(key=lambda candidate: -rates[id(candidate)] / price(candidate))
    for candidate in faster:
        yield _explained(candidate, base)
    yield base
    # Lossy precisions and back ends that were not measured faster are used only if asked for by name.
    for candidate in plain:
        asked = options.backend != "auto" or not candidate.spec.measured_only
        if candidate is not base and candidate not in faster and asked:
            yield candidate


def _explained(candidate: Candidate, base: Candidate) -> Candidate:
    theirs = [base.spec.title] if base.spec != candidate.spec else []
    theirs += [base.precision] if base.precision != candidate.precision else []
    faster = f"which the export measured faster than {' in '.join(theirs)}"
    why = f"{candidate.why}, by the back end {faster}" if candidate.why else f", {faster}"
    return Candidate(candidate.spec, candidate.device, candidate.precision, why)


def _rate(manifest: Manifest, candidate: Candidate, kind: str) -> float | None:
    """Images per second that the export measured with that back end on this kind of processor, else None."""
    for found in manifest.variants[candidate.precision].verifications:
        same = (found.backend, found.device) == (candidate.spec.name, str(candidate.device))
        if same and found.machine in ("", kind):
            return found.images_per_second
    return None
