"""The report as a person meets it: in a headless browser, with mouse and keyboard, on a desk and on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from helpers.headless_browser import NAMES, Page, browser, executable
from helpers.report_inputs import lenet5_page

pytestmark = pytest.mark.skipif(executable() is None, reason=f"needs a browser on PATH: {', '.join(NAMES)}")

DATA = "JSON.parse(document.getElementById('data').textContent)"
ROUNDS = 20


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(lenet5_page(), "utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def window() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(window: Page, address: str) -> Page:
    window.requests.clear()
    window.problems.clear()
    window.open(address)
    return window


def text(page: Page, selector: str) -> str:
    found: str = page.run(f"document.querySelector({json.dumps(selector)}).innerText")
    return found


def click(page: Page, selector: str) -> None:
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def test_it_asks_for_nothing_and_the_console_stays_clean(page: Page, address: str) -> None:
    outside = [url for url in page.requests if url != address and not url.startswith("data:")]
    assert page.requests[0] == address
    assert outside == []
    assert page.problems == []


def test_its_policy_forbids_requests_and_foreign_scripts(page: Page) -> None:
    refused = "fetch('https://example.org').then(() => 'sent', () => 'refused')"
    assert page.run(refused) == "refused"
    page.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    assert page.run("typeof window.ran") == "undefined"
    assert [url for url in page.requests if url.startswith("http")] == []
    assert page.problems  # the browser reports what the policy stopped


def test_the_largest_confusion_is_open_at_first(page: Page) -> None:
    counts: list[int] = page.run("[...document.querySelectorAll('.cell.mistake')].map(cell => +cell.dataset.count)")
    assert page.run("+document.querySelector('.cell[aria-pressed=true]').dataset.count") == max(counts)


def test_the_matrix_cuts_off_no_cell_and_no_ring_around_one(page: Page) -> None:
    box = "document.querySelector('.matrix').parentElement.getBoundingClientRect()"
    cells = "[...document.querySelectorAll('.cell')].map(cell => cell.getBoundingClientRect().right)"
    assert page.run(f"{box}.right - Math.max(...{cells})") >= 3


def test_clicking_a_cell_opens_the_pictures_behind_it(page: Page) -> None:
    for kind in ("mistake", "right"):
        cell: str = page.run(f"[...document.querySelectorAll('.cell.{kind}')].at(-1).dataset.cell")
        click(page, f'[data-cell="{cell}"]')
        true, answer = cell.split(",")
        heading = f"{true} taken for {answer}" if kind == "mistake" else f"{true}, named right"
        assert text(page, "#behind h3") == heading
        shown: list[int] = page.run(
            "[...document.querySelectorAll('#behind [data-picture]')].map(b => +b.dataset.picture)"
        )
        assert shown == page.run(f"{DATA}.cells['{cell}']")
        assert page.run("document.querySelectorAll('.cell[aria-pressed=true]').length") == 1


def test_arrow_keys_move_between_cells_and_enter_opens(page: Page) -> None:
    page.run("document.querySelector('[data-cell=\"0,0\"]').focus()")
    focused = "document.activeElement.dataset.cell"
    page.press("ArrowDown")
    page.press("ArrowRight")
    row, column = map(int, page.run(focused).split(","))
    assert row > 0
    assert column > 0
    page.press("Enter")
    assert page.run("document.querySelector('.cell[aria-pressed=true]') === document.activeElement")
    assert page.run("document.querySelectorAll('.cell[tabindex=\"0\"]').length") == 1


def test_a_picture_opens_enlarged_with_its_probabilities_and_closes(page: Page) -> None:
    click(page, "#predictions [data-picture]")
    assert page.run("document.getElementById('zoom').open")
    place: str = page.run("document.querySelector('#predictions [data-picture]').dataset.picture")
    index, true, top = page.run(f"{DATA}.pictures[{place}]")
    assert text(page, "#zoomed") == f"Test image {index}: {true}"
    rows: list[str] = page.run("[...document.querySelectorAll('#bars .row')].map(row => row.lastChild.textContent)")
    assert rows == [f"{per_mille / 10:.1f} %" for _, per_mille in top]
    drawn = "getComputedStyle(document.querySelector('{}')).backgroundPosition"
    assert page.run(drawn.format("#zoomshown")) == page.run(drawn.format("#predictions .picture"))
    click(page, ".close")
    assert not page.run("document.getElementById('zoom').open")


def play(page: Page, pool: str, *, right: int) -> int:
    """Plays one match with `right` right answers first, by keyboard and by mouse in turn; gives the network's score."""
    click(page, f"input[value={pool}]")
    click(page, "#choose button")
    network = 0
    for turn in range(ROUNDS):
        _, true, top = page.run(f"{DATA}.pictures[document.getElementById('shown').dataset.id]")
        network += top[0][0] == true
        label = true if turn < right else (true + 1) % 10
        if turn % 2:
            click(page, f'[data-label="{label}"]')
        else:
            page.press(str(label))
        verdict = text(page, "#verdict")
        assert verdict.startswith("Right." if turn < right else f"No, it is “{true}”.")
        assert verdict.endswith("and is wrong." if top[0][0] != true else "%).")
        assert text(page, "#score") == f"you {min(turn + 1, right)}, network {network}"
        page.press("Enter")
    return network


def test_the_quiz_scores_a_person_against_the_network_on_the_same_pictures(page: Page) -> None:
    network = play(page, "random", right=ROUNDS)
    verdict = "A draw." if network == ROUNDS else "You win."
    assert text(page, "#outcome") == f"{verdict} You named {ROUNDS} of {ROUNDS} right, the network {network}."
    click(page, "#again")
    network = play(page, "hard", right=0)
    assert network > 0
    assert text(page, "#outcome") == f"The network wins. You named 0 of {ROUNDS} right, the network {network}."
    assert page.run("document.querySelectorAll('#differences .card').length") == ROUNDS
    assert page.problems == []


def test_an_answer_counts_once(page: Page) -> None:
    click(page, "#choose button")
    page.press("0")
    verdict = text(page, "#verdict")
    page.press("1")
    assert text(page, "#verdict") == verdict
    assert text(page, "#progress") == f"Image 1 of {ROUNDS}"


def test_tabs_show_the_feature_maps_of_one_picture_at_a_time(page: Page) -> None:
    visible = "[...document.querySelectorAll('[data-panel]')].filter(p => !p.hidden).map(p => p.dataset.panel)"
    assert page.run(visible) == ["0"]
    click(page, '[data-tab="2"]')
    assert page.run(visible) == ["2"]
    assert page.run("document.querySelectorAll('[data-panel=\"2\"] .kernels .picture').length") == 6


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (768, False), (1600, False)])
def test_it_fits_the_window_without_scrolling_sideways(window: Page, address: str, width: int, dark: bool) -> None:
    window.open(address, width=width, dark=dark)
    assert window.run("document.documentElement.scrollWidth") <= width
    background: str = window.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(246, 245, 241)")


def test_everything_that_is_seen_or_pressed_has_a_name(page: Page) -> None:
    nameless = """[...document.querySelectorAll('button, svg:not([aria-hidden]), [role=img], img, input')]
        .filter(e => !e.closest('[hidden]'))
        .filter(e => !(e.getAttribute('aria-label') || e.alt || e.innerText || e.labels?.length))
        .map(e => e.outerHTML.slice(0, 80))"""
    assert page.run(nameless) == []
    # Images without a role lie in buttons that name them.
    assert page.run("[...document.querySelectorAll('.picture:not([role])')].every(e => e.closest('[aria-label]'))")
    levels: list[int] = page.run("[...document.querySelectorAll('main h2, main h3')].map(h => +h.tagName[1])")
    assert levels[0] == 2
    assert page.run("document.querySelectorAll('h1').length") == 1
    assert page.run("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == page.run(
        "document.querySelectorAll('[id]').length"
    )


def test_text_stands_out_from_its_ground_in_light_and_dark(window: Page, address: str) -> None:
    # WCAG 2.2: 4.5 to 1 for text. The page's own colors, ink and soft ink and red, on page and card.
    ratio = """(ink, ground) => {
        const style = getComputedStyle(document.documentElement);
        const light = name => {
            const hex = style.getPropertyValue(name).trim();
            const full = hex.length === 4 ? [...hex.slice(1)].map(c => c + c).join('') : hex.slice(1);
            const [r, g, b] = [0, 2, 4].map(i => parseInt(full.slice(i, i + 2), 16) / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    }"""
    for dark in (False, True):
        window.open(address, dark=dark)
        for ink in ("--ink", "--soft", "--bad", "--accent"):
            for ground in ("--page", "--card"):
                assert window.run(f"({ratio})('{ink}', '{ground}')") >= 4.5, (ink, ground, dark)


def test_the_page_prints_whole_without_its_games(window: Page, address: str) -> None:
    window.open(address)
    window.emulate_print()
    hidden = "['nav', '#quiz', '#behind'].every(s => getComputedStyle(document.querySelector(s)).display === 'none')"
    assert window.run(hidden)
    assert window.run("[...document.querySelectorAll('.tabbed')].every(e => getComputedStyle(e).display === 'block')")
