"""Origin: a checkpoint of our own by name or path, or a state dict of one of our networks; and its data set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import onnx
import torch

from convexport.export import shipped
from convexport.export.passes.fold_batch_norm import fold_batch_norm
from convexport.export.sources.network import Facts
from convexport.export.sources.state_dict import read_state, without_needless_biases, without_prefixes
from convexport.export.sources.stated import Foreign
from convexport.export.sources.torch_module import TorchNetwork, trace
from convexport.runtime.errors import CheckpointError, UsageError, first_line
from convexport.runtime.manifest import Accuracy, Input, Normalization
from convexport.runtime.manifest import Dataset as DatasetFacts
from convexport.runtime.text import counted
from convexport.training import datasets, models
from convexport.training.checkpoint import FORMAT, Checkpoint, Header, load

UNKNOWN = "unknown"
# Where convtrain writes by default; the folder `checkpoints` has those that come with convexport.
TRAINED = Path("runs")


@dataclass(frozen=True)
class Source:
    """Which checkpoint: `path`, else the file of `model` and `dataset`. `foreign` describes a state dict."""

    model: str | None = None
    dataset: str | None = None
    path: Path | None = None
    foreign: Foreign | None = None
    folder: Path = Path("checkpoints")


class CheckpointNetwork(TorchNetwork):
    """One of our own networks, from its checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        header = checkpoint.header
        network = checkpoint.network()
        facts = Facts(
            name=header.name,
            model=header.model,
            arguments=header.arguments,
            parameters=models.parameter_count(network),
            classes=header.classes,
            input=header.input,
            normalization=header.normalization,
            dataset=header.dataset,
            accuracy=header.accuracy,
            sha256=checkpoint.sha256,
            recipe=header.recipe,
            seed=header.seed,
            git_commit=header.git_commit,
            versions=header.versions,
        )
        super().__init__(network, facts, checkpoint.remarks)
        self.checkpoint = checkpoint

    def core(self) -> onnx.ModelProto:
        # Folded before the trace, so that weights keep the names that the checkpoint gives them.
        return trace(fold_batch_norm(self.checkpoint.network()), self.facts.input)

    @property
    def dead(self) -> int:
        return sum(1 for value in self.checkpoint.state.values() if value.dim() > 1 and not value.any())


def load_checkpoint(source: Source) -> Checkpoint:
    """The checkpoint to export. Raises `UsageError` and `CheckpointError`."""
    if source.model is not None:
        models.entry(source.model)
    if source.foreign is not None and (source.foreign.classes or source.foreign.mean or source.foreign.std):
        return _checked(_foreign(source, source.foreign))
    checkpoint = load(source.path if source.path is not None else _by_name(source))
    header = checkpoint.header
    if source.model not in (None, header.model):
        raise UsageError(f"checkpoint {header.name} contains {header.model}, not {source.model}", "leave out --model")
    if not header.classes.get("en"):
        raise CheckpointError(f"checkpoint {header.name}: it names no classes", "train again")
    return _checked(checkpoint)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, after checks of its header and weights. Raises `CheckpointError`."""
    header = checkpoint.header
    # It becomes the name of the bundle's folder, and must not lead out of --out.
    if not header.name.isprintable() or not header.name or set(header.name) & set("/\\"):
        raise CheckpointError(f"checkpoint name {header.name!r}: expected the name of a folder", "train again")
    where, channels = f"checkpoint {header.name}", header.input.channels
    mean, std, temperature = header.normalization.mean, header.normalization.std, header.normalization.temperature
    finite = all(map(math.isfinite, (*mean, *std, temperature)))
    if not (len(mean) == len(std) == channels and finite and min(*std, temperature) > 0):
        raise CheckpointError(
            f"{where}: mean {list(mean)}, std {list(std)}, temperature {temperature:g}; expected {channels} numbers "
            "each, std and temperature above 0",
            "train again",
        )
    outputs = _outputs(checkpoint)
    for language, labels in header.classes.items():
        if len(labels) != outputs:
            raise CheckpointError(
                f"{where}: {counted(len(labels), 'class')} in {language!r}, its network has {outputs}", "train again"
            )
        if not all(label and label.isprintable() for label in labels):
            raise CheckpointError(f"{where}: its classes {list(labels)} are not one line each", "train again")
    return checkpoint


def _outputs(checkpoint: Checkpoint) -> int:
    """The number of classes of the network. Raises `CheckpointError` if it cannot process its own input."""
    header = checkpoint.header
    where, size = f"checkpoint {header.name}", header.input
    try:
        network = checkpoint.network()
    except (RuntimeError, UsageError) as error:
        raise CheckpointError(f"{where}: its network cannot be built ({first_line(error)})", "train again") from error
    for key, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{where}: tensor {key!r} contains NaN or infinity", "train again")
    try:
        with torch.no_grad():
            return int(network(torch.zeros(1, size.channels, size.height, size.width)).shape[1])
    except RuntimeError as error:
        shape = [size.height, size.width, size.channels]
        raise CheckpointError(
            f"{where}: {header.model} does not accept {shape} ({first_line(error)})", "train again"
        ) from error


def _by_name(source: Source) -> Path:
    if source.model is None:
        raise UsageError(
            "no network was named",
            f"name one with --model, or its file with --checkpoint; known: {', '.join(models.MODELS)}",
        )
    dataset = source.dataset or models.entry(source.model).dataset
    path = source.folder / f"{source.model}-{Path(dataset).absolute().name}.safetensors"
    places = [path] if source.folder != Source.folder else [TRAINED / path.name, path]
    found = [place for place in places if place.is_file()]
    if len(found) > 1:
        raise UsageError(f"there are two checkpoints: {found[0]} and {found[1]}", "choose one with --checkpoint")
    if found:
        return found[0]
    if source.folder == Source.folder and (inside := shipped.installed(path.stem)):
        return inside
    there = sorted(file.stem for file in source.folder.glob("*.safetensors"))
    near = get_close_matches(path.stem, there, n=1, cutoff=0.5)
    hint = f" ({source.folder / near[0]}.safetensors exists)" if near else ""
    extra = f" --dataset {dataset}" if source.dataset else ""
    get = shipped.where_to_get(path.stem, f"convtrain --model {source.model}{extra}")
    raise CheckpointError(f"checkpoint {path} does not exist", f"{get}, or name another file with --checkpoint{hint}")


def _foreign(source: Source, facts: Foreign) -> Checkpoint:
    if source.path is None or source.model is None:
        raise UsageError(
            "--classes, --mean and --std are only for a state dict", "name the state dict with --checkpoint and --model"
        )
    entry = models.entry(source.model)
    if not facts.classes or facts.mean is None or facts.std is None:
        missing = [f"--{name}" for name in ("classes", "mean", "std") if not getattr(facts, name)]
        raise UsageError(
            f"a state dict from another project needs --classes, --mean and --std; missing: {', '.join(missing)}"
        )
    channels = len(facts.mean)
    numbers = (*facts.mean, *facts.std)
    if (
        channels not in (1, 3)
        or len(facts.std) != channels
        or min(facts.std) <= 0
        or not all(map(math.isfinite, numbers))
    ):
        raise UsageError(
            f"--mean {list(facts.mean)} --std {list(facts.std)}: expected 1 or 3 numbers each, std above 0"
        )
    if len(facts.classes) < 2:
        raise UsageError(
            f"--classes contains {counted(len(facts.classes), 'label')}, expected two or more", "write one in each line"
        )
    arguments = {"classes": len(facts.classes), "channels": channels}
    weights = read_state(source.path, facts.state)
    expected = models.build(source.model, arguments).state_dict().keys()
    found = max(without_prefixes(weights.state), key=lambda state: len(state.keys() & expected))
    state = without_needless_biases(found, expected)
    name = f"{source.model}-{Path(source.dataset).absolute().name if source.dataset else source.path.stem}"
    header = Header(
        format=FORMAT,
        name=name,
        model=source.model,
        arguments=arguments,
        classes={"en": facts.classes},
        input=Input(height=entry.size, width=entry.size, channels=1 if channels == 1 else 3),
        normalization=Normalization(mean=facts.mean, std=facts.std),
        dataset=DatasetFacts(
            name=source.dataset or UNKNOWN,
            title=source.dataset or "data not stated",
            provenance=f"state dict {source.path.name}, from another project",
        ),
        recipe={},
        accuracy=Accuracy(),
        seed=None,
        versions={},
        git_commit=None,
    )
    return Checkpoint(header, state, weights.sha256, weights.remarks)


def labeled_set(facts: Facts, wanted: str | None, root: Path) -> datasets.Dataset | None:
    """The data set of the given name, else the network's own; None if it is not one that can be loaded.

    A checkpoint never names a folder of this disk: its data set is one of ours, or the user names it. Nothing is read
    yet. Raises `UsageError` for an unknown given name.
    """
    name = wanted or facts.dataset.name
    if wanted is None and name not in datasets.DATASETS:
        return None
    return datasets.load(name, root, facts.input)
