"""What a checkpoint's header says is shown and never obeyed: not by Markdown, not by this machine's disk."""

from __future__ import annotations

import msgspec
import pytest

from convexport.export.card import card
from convexport.export.sources.checkpoint import labeled_set
from convexport.export.sources.network import Facts
from convexport.runtime.bundle import open_bundle
from convexport.runtime.manifest import Dataset
from helpers.bundles import make_bundle
from helpers.small_checkpoints import untrained


def test_the_card_takes_no_markup_from_a_data_set(tmp_path) -> None:
    with open_bundle(make_bundle(tmp_path / "tiny")) as bundle:
        manifest = bundle.manifest
    title = "<img src=x>\x1b[2J\n# [click](http://evil) | a"
    data = Dataset(name="x", title=title, provenance="a `b` *c*")
    found = card(
        msgspec.structs.replace(manifest, provenance=msgspec.structs.replace(manifest.provenance, dataset=data))
    )
    assert "\x1b" not in found
    assert r"\<img src=x\>\\x1b\[2J\\n\# \[click\](http://evil) \| a" in found
    assert r"a \`b\` \*c\*" in found
    assert not any(line.startswith("# [") for line in found.splitlines())


def test_a_checkpoint_names_no_folder_of_the_exporters_disk(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    header = untrained("softmax").header
    facts = Facts(
        name=header.name,
        model=header.model,
        parameters=1,
        classes=header.classes,
        input=header.input,
        normalization=header.normalization,
        dataset=msgspec.structs.replace(header.dataset, name="photos"),
        accuracy=header.accuracy,
        sha256="0" * 64,
        answers="logits",
    )
    assert labeled_set(facts, None, tmp_path) is None
