"""A bundle as a web page: one self-contained HTML file, or a folder for a static server if the file would be large.

Network, labels, golden images and the runtime are in the page, which runs the self-test when it opens. A folder of
modules cannot be opened by double click: browsers do not let a page on the disk read other files.
"""

from __future__ import annotations

import base64
import gzip
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup

from convexport.export.web.runtime import LICENSE, VERSION, WebRuntime, notices
from convexport.runtime import atomic
from convexport.runtime.bundle import Bundle, open_bundle
from convexport.runtime.errors import StorageError, UsageError
from convexport.runtime.manifest import Input, Manifest
from convexport.runtime.precision import Precision

LARGEST_FILE = 30 << 20

_TEMPLATES = Path(__file__).parent / "templates"


class _Golden(msgspec.Struct, frozen=True, kw_only=True):
    file: str
    data: bytes
    probabilities: tuple[float, ...]


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a bundle that the page's code reads, named as in the manifest."""

    name: str
    input: Input
    labels: dict[str, tuple[str, ...]]
    golden_tolerance: float
    golden: tuple[_Golden, ...]


@dataclass(frozen=True)
class WebPage:
    """The result: an HTML file or a folder with `index.html`, its precision, its bytes, and a note."""

    path: Path
    precision: Precision
    bytes: int
    note: str = ""


def write_page(bundle: Path, out: Path, runtime: WebRuntime, precision: Precision | None = None) -> WebPage:
    """Writes `out/NAME.html`, or the folder `out/NAME-web` if the file would be larger than `LARGEST_FILE`.

    Args:
        bundle: The bundle's folder or zip.
        out: The folder that the page goes into; a page of that name is replaced.
        runtime: The files of onnxruntime-web.
        precision: The variant in the page; None takes the smallest file.

    Raises:
        BundleError: The bundle is damaged.
        UsageError: The bundle has no such variant, gives an image several labels, or takes several images at once.
        StorageError: The page cannot be written.
    """
    with open_bundle(bundle, verify=True) as opened:
        manifest = opened.manifest
        if manifest.activation != "softmax":
            raise UsageError(
                f"{manifest.name} gives an image several labels, which the page does not show", "leave out the page"
            )
        if (manifest.batch or 1) > 1:
            raise UsageError(
                f"{manifest.name} takes {manifest.batch} images at once, and the page has one",
                "leave out the page, or export the network again with a dynamic batch",
            )
        sizes = {name: manifest.files[variant.file].bytes for name, variant in manifest.variants.items()}
        chosen = precision or min(sizes, key=sizes.__getitem__)
        if chosen not in manifest.variants:
            raise UsageError.unknown("precision", chosen, manifest.variants)
        files = {
            "bundle.json": msgspec.json.encode(_facts(opened, chosen)),
            "model.onnx": opened.read(manifest.variants[chosen].file),
            **runtime.files,
        }
    inside = {name: base64.b64encode(gzip.compress(data, 9, mtime=0)).decode() for name, data in files.items()}
    text = _html(manifest, chosen, inside).encode()
    try:
        if len(text) <= LARGEST_FILE:
            path = out / f"{manifest.name}.html"
            atomic.write(path, text)
            return WebPage(path, chosen, len(text))
        files["index.html"] = _html(manifest, chosen, {}).encode()
        return _write_folder(out / f"{manifest.name}-web", files, chosen, len(text))
    except OSError as error:
        raise StorageError.unwritable(f"{out}: the page", error, "name another folder") from error


def _write_folder(folder: Path, files: dict[str, bytes], precision: Precision, as_one: int) -> WebPage:
    """A folder appears whole, or the old one stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        draft.chmod(0o755)
        for name, data in files.items():
            atomic.write(draft / name, data)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except BaseException:  # also Ctrl-C: no draft stays behind
        shutil.rmtree(draft, ignore_errors=True)
        raise
    note = (
        f"one file would have {as_one / 2**20:.0f} MB, more than {LARGEST_FILE >> 20} MB, which browsers open slowly; "
        f"serve the folder: python -m http.server --directory {folder}"
    )
    return WebPage(folder, precision, sum(map(len, files.values())), note)


def _facts(bundle: Bundle, precision: Precision) -> _Facts:
    manifest = bundle.manifest
    return _Facts(
        name=manifest.name,
        input=manifest.input,
        labels=manifest.labels,
        golden_tolerance=manifest.variants[precision].golden_tolerance,
        golden=tuple(
            _Golden(file=golden.file, data=bundle.read(golden.file), probabilities=golden.probabilities)
            for golden in manifest.golden
        ),
    )


def _html(manifest: Manifest, precision: Precision, files: dict[str, str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    css, script = (Markup((_TEMPLATES / name).read_text("utf-8")) for name in ("page.css", "page.mjs"))
    framing = (_TEMPLATES / "framing.mjs").read_text("utf-8").replace("export function", "function")
    return environment.get_template("page.html.j2").render(
        name=manifest.name,
        facts=_headline(manifest, precision),
        golden=len(manifest.golden),
        files=files,
        css=css,
        script=Markup(framing) + script,
        version=VERSION,
        license=LICENSE,
        notices=notices(),
    )


def _headline(manifest: Manifest, precision: Precision) -> str:
    verification = manifest.variants[precision].verification
    trained = f"{manifest.model.name}, {len(manifest.classes)} classes, trained on {manifest.provenance.dataset.title}"
    if verification.accuracy is None:
        return f"{trained}, in {precision}."
    return f"{trained}. In {precision} its accuracy is {verification.accuracy:.2%} on {verification.images_kind}."
