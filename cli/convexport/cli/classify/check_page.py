"""The result of a check as one self-contained HTML page without scripts."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO

from PIL import Image

from convexport.runtime.check import Check, Wrong, confused_most
from convexport.runtime.errors import InputError
from convexport.runtime.images import load_image
from convexport.runtime.manifest import Input
from convexport.runtime.text import counted

# With up to this many classes the whole matrix is shown, else the pairs that were confused most.
MATRIX_CLASSES = 20
_THUMBNAIL = Input(height=112, width=112, channels=3, framing="pad")
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --soft: #667; --line: #d8dbe0;
  --good: 26 127 75; --bad: 190 40 40 }
@media (prefers-color-scheme: dark) {
  :root { --back: #15171a; --text: #e6e8eb; --soft: #9aa0a8; --line: #33373d;
    --good: 70 190 120; --bad: 235 95 95 }
}
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.verdict { font-size: 1.1rem; font-weight: 600; color: rgb(var(--good)) } .verdict.worse { color: rgb(var(--bad)) }
.soft { color: var(--soft) } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td.name { text-align: left }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; padding: 0;
  list-style: none }
.worst img { width: 112px; height: 112px; display: block } .worst li { overflow-wrap: anywhere; font-size: .85rem }
"""


def check_page(found: Check, labels: tuple[str, ...]) -> bytes:
    """HTML in UTF-8."""
    first, *others = found.in_words()
    kind = " worse" if found.verdict == "worse" else ""
    sentences = "".join(f"<p>{escape(line[:1].upper() + line[1:])}.</p>" for line in others)
    body = (
        f"<h1>Check of {escape(found.bundle)}</h1>"
        f'<p class="verdict{kind}">{escape(first)}</p>{sentences}'
        f'<p class="soft">{escape(found.description)}{_left_out(found)}</p>'
        f"<h2>Classes</h2>{_classes(found)}<h2>Confusions</h2>{_confusion(found, labels)}"
        f"<h2>Worst images</h2>{_worst(found)}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Check of {escape(found.bundle)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    ).encode()


def _left_out(found: Check) -> str:
    words = [f"{counted(found.failed, 'image')} could not be read"] * bool(found.failed)
    words += [f"{found.unlabeled:,} had no label"] * bool(found.unlabeled)
    return "".join(f"; {word}" for word in words)


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _name(text: str) -> str:
    return f'<td class="name">{escape(text)}</td>'


def _cell(text: str) -> str:
    return f"<td>{text}</td>"


def _classes(found: Check) -> str:
    rows = [
        [_name(one.label), _cell(f"{one.images:,}"), _cell(f"{one.right:,}"), _cell(f"{one.right / one.images:.1%}")]
        for one in found.classes
    ]
    return _table(["class", "images", "right", "share"], rows)


def _confusion(found: Check, labels: tuple[str, ...]) -> str:
    """The matrix if it fits on a page, each cell shaded by its share of the class; else the most frequent pairs."""
    if len(labels) > MATRIX_CLASSES:
        pairs = [
            [_name(labels[pair.truth]), _name(labels[pair.answer]), _cell(f"{pair.images:,}")]
            for pair in confused_most(found, 40)
        ]
        return _table(["class", "taken for", "images"], pairs)
    counts = {(entry.truth, entry.answer): entry.images for entry in found.confusion}
    rows = []
    for one in found.classes:
        cells = [_name(one.label)]
        for answer in range(len(labels)):
            number = counts.get((one.index, answer), 0)
            color = "good" if answer == one.index else "bad"
            tint = f' style="background: rgb(var(--{color}) / {0.6 * number / one.images:.2f})"' if number else ""
            cells.append(f"<td{tint}>{number or ''}</td>")
        rows.append(cells)
    return _table(["class \\ answer", *map(escape, labels)], rows)


def _worst(found: Check) -> str:
    if not found.worst:
        return "<p>None: every answer was right.</p>"
    return f'<ul class="worst">{"".join(map(_picture, found.worst))}</ul>'


def _picture(one: Wrong) -> str:
    words = f"{one.truth}, answered {one.answer} ({one.probability:.1%})"
    try:
        pixels, _ = load_image(one.input, _THUMBNAIL)
    except InputError:  # removed after it was classified
        image = ""
    else:
        stream = BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        data = base64.b64encode(stream.getvalue()).decode()
        image = f'<img alt="" src="data:image/png;base64,{data}">'
    return f'<li>{image}<strong>{escape(words)}</strong><br><span class="soft">{escape(one.input)}</span></li>'
