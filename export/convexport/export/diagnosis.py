"""`diagnose`: which preprocessing and which order of labels fit labeled images best, tried on the origin itself.

A hypothesis is judged by how likely it makes the labels: accuracy alone cannot tell hypotheses apart that are right on
almost the same images. Probabilities are brought to the best temperature first, or a network that is too sure of
itself would prefer images without contrast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from convexport.export import hypotheses, own_images
from convexport.export.answering import Answering
from convexport.export.hypotheses import Hypothesis, Order
from convexport.export.samples import stratified
from convexport.export.sources.network import Network
from convexport.runtime.inputs import Plain
from convexport.runtime.manifest import Input

Progress = Callable[[str], None]
# Every hypothesis is tried on a few images, the likeliest ones on more, and the likeliest of those on all.
SCREENED, KEPT = (64, 200), (8, 5)
ROWS = 12
LEVEL = 0.05
_TEMPERATURES = np.geomspace(0.25, 8, 21)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One hypothesis on the labeled images.

    Attributes:
        causes: What differs from what is stated; empty for what is stated.
        options: The options that state it; empty where none do.
        images: How many images it was tried on.
        right: How many the network then gets right.
        log_loss: The mean of -log p of the right class, at the best temperature.
        better: Images that are right by this hypothesis and wrong as stated.
        worse: The other way round.
        p_value: Of McNemar's exact test: how often chance alone makes such a difference.
        told_apart: Whether the images tell it from the first row.
    """

    causes: tuple[str, ...]
    options: str
    images: int
    right: int
    log_loss: float
    better: int
    worse: int
    p_value: float
    told_apart: bool = True

    @property
    def cause(self) -> str:
        """Its causes in one line."""
        return " and ".join(self.causes) or "as stated"


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The hypotheses that were tried, the likeliest first, and what follows in a sentence."""

    rows: tuple[Row, ...]
    verdict: str
    fix: str

    @property
    def stated(self) -> Row:
        """What is stated."""
        return next(row for row in self.rows if not row.causes)


@dataclass(frozen=True)
class Labeled:
    """Images of any size, and the network's index of each one's class as stated, int64 [N]."""

    sources: Sequence[Plain]
    truth: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Labeled:
        """Some of them."""
        return Labeled([self.sources[row] for row in rows], self.truth[rows])


@dataclass(frozen=True)
class _Trial:
    """A hypothesis with an order of labels, tried."""

    hypothesis: Hypothesis
    order: Order | None
    right: NDArray[np.bool_]
    losses: NDArray[np.float64]

    @property
    def causes(self) -> tuple[str, ...]:
        return (*self.hypothesis.causes, *([self.order.cause] if self.order else []))

    @property
    def cost(self) -> float:
        """How unlikely it makes the labels, and how unlikely it was before."""
        return float(self.losses.sum()) + self.hypothesis.cost + (self.order.cost if self.order else 0.0)


class _Trials:
    """Tries hypotheses on some labeled images; each framing is read once."""

    def __init__(self, network: Network, labeled: Labeled, answering: Answering) -> None:
        self._network = network
        self._labeled = labeled
        self._answering = answering
        self._labels = network.facts.classes["en"]
        self._orders = hypotheses.orders(self._labels)
        self._read: dict[str, NDArray[np.uint8]] = {}
        self._logs: dict[tuple[str, ...], NDArray[np.float64]] = {}
        self.found: dict[tuple[str, ...], _Trial] = {}

    def images(self, input: Input) -> NDArray[np.uint8]:
        """The images by one framing, uint8 [N, H, W, C]."""
        key = f"{input.framing} {input.crop:.4f} {input.filter}"
        if key not in self._read:
            self._read[key] = own_images.read(self._labeled.sources, input)
        return self._read[key]

    def run(self, hypothesis: Hypothesis, order: Order | None = None, *, all_orders: bool = True) -> None:
        """Tries a hypothesis with every order of the labels, or with one."""
        logs = self._answers(hypothesis)
        truth = self._labeled.truth
        wanted = [None, *self._orders] if all_orders else [order]
        if all_orders:
            shown = hypotheses.order_shown(logs, truth, self._labels)
            known = [np.arange(len(self._labels)), *(one.output for one in self._orders)]
            if shown is not None and not any(np.array_equal(shown.output, one) for one in known):
                wanted.append(shown)
        answers = logs.argmax(axis=1)
        for one in wanted:
            right = truth if one is None else one.output[truth]
            trial = _Trial(hypothesis, one, answers == right, _losses(logs, right))
            self.found[trial.causes] = trial

    def _answers(self, hypothesis: Hypothesis) -> NDArray[np.float64]:
        if hypothesis.causes not in self._logs:
            facts = hypothesis.facts(self._network.facts)
            self._logs[hypothesis.causes] = self._answering(hypothesis.colored(self.images(hypothesis.input)), facts)
        return self._logs[hypothesis.causes]

    @property
    def ranked(self) -> list[_Trial]:
        """The likeliest first."""
        return sorted(self.found.values(), key=lambda trial: trial.cost)


def diagnose(network: Network, labeled: Labeled, *, bgr: bool = False, progress: Progress | None = None) -> Diagnosis:
    """Tries hypotheses on the origin and ranks them.

    Args:
        network: The network, with what is stated of it.
        labeled: Images that it was not trained on, with the classes as stated.
        bgr: Whether it is stated to take blue first.
        progress: Is told what is tried.
    """
    say = progress or (lambda line: None)
    few, more = (labeled.take(stratified(labeled.truth, count)) for count in SCREENED)
    base = hypotheses.stated(network.facts)
    answering = Answering(network, own_images.read(few.sources[:4], base.input))
    say(f"diagnosis   normalizations, colors and orders of labels, on {len(few.truth):,} labeled images")
    screened = _Trials(network, few, answering)
    _content(screened, base, network, bgr)
    say(f"diagnosis   the likeliest of them, and framings, on {len(more.truth):,}")
    trials = _again(screened, _Trials(network, more, answering), KEPT[0])
    _framing(trials, base)
    if len(labeled.truth) > len(more.truth):
        say(f"diagnosis   the likeliest of all on all {len(labeled.truth):,}")
        trials = _again(trials, _Trials(network, labeled, answering), KEPT[1])
    return _table(trials.ranked)


def _again(before: _Trials, after: _Trials, count: int) -> _Trials:
    """The likeliest hypotheses, and what is stated, tried on more images."""
    likeliest = before.ranked[:count]
    as_stated = before.found[()]
    for trial in [*likeliest, *([as_stated] if as_stated not in likeliest else [])]:
        after.run(trial.hypothesis, trial.order, all_orders=False)
    return after


def _framing(trials: _Trials, base: Hypothesis) -> None:
    """Other framings of what is stated, and of the likeliest hypothesis with the order of labels that it has."""
    likeliest = trials.ranked[0]
    tried = [trials.images(base.input)]
    for number, one in enumerate(hypotheses.framings(base)):
        images = trials.images(one.input)
        if not any(np.array_equal(images, other) for other in tried):  # else they have the network's size already
            tried.append(images)
            trials.run(one, likeliest.order if not likeliest.hypothesis.causes else None, all_orders=False)
            if likeliest.hypothesis.causes:
                changed = list(hypotheses.framings(likeliest.hypothesis))[number]
                trials.run(changed, likeliest.order, all_orders=False)


def _content(trials: _Trials, start: Hypothesis, network: Network, bgr: bool) -> None:
    """Normalizations and colors by one framing: colors with the stated normalization and with the likeliest ones."""
    trials.run(start)
    given = [] if network.takes_bytes else list(hypotheses.normalizations(start, trials.images(start.input)))
    for one in given:
        trials.run(one)
    likeliest = sorted(given, key=lambda one: min(t.cost for t in trials.found.values() if t.hypothesis == one))
    tried = likeliest if start.input.channels == 1 else likeliest[:3]  # black and white exchanged upset every mean
    for one in (start, *tried):
        for other in hypotheses.colors(one, bgr=bgr):
            trials.run(other)


def _losses(logs: NDArray[np.float64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log p of the right class of each image [N], at the temperature that makes their sum smallest."""
    best: NDArray[np.float64] | None = None
    for temperature in _TEMPERATURES:
        scaled = logs / temperature
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        losses = total - scaled[np.arange(len(right)), right]
        if best is None or losses.sum() < best.sum():
            best = losses
    assert best is not None
    return best


def _table(ranked: list[_Trial]) -> Diagnosis:
    as_stated = next(trial for trial in ranked if not trial.causes)
    shown = ranked[:ROWS] if as_stated in ranked[:ROWS] else [*ranked[: ROWS - 1], as_stated]
    rows = tuple(_row(trial, as_stated, ranked[0]) for trial in shown)
    first, stated = rows[0], next(row for row in rows if not row.causes)
    if not first.causes:
        return Diagnosis(rows=rows, verdict="nothing that was tried fits better than what is stated", fix="")
    gain = f"{first.right:,} of {first.images:,} right in place of {stated.right:,}"
    chance = (
        f"chance alone makes such a difference with p = {first.p_value:.1g}"
        if first.p_value <= LEVEL
        else f"as to right answers alone that may be chance (p = {first.p_value:.2g})"
    )
    others = [row for row in rows[1:] if not set(first.causes) <= set(row.causes)]
    alike = [row.cause for row in others if not row.told_apart]
    doubt = f"; these images do not tell it from: {', '.join(alike[:3])}" if alike else ""
    fix = f"state {first.options}" if first.options else "compare with how it was trained"
    return Diagnosis(rows=rows, verdict=f"{first.cause}: {gain}, {chance}{doubt}", fix=fix)


def _row(trial: _Trial, as_stated: _Trial, first: _Trial) -> Row:
    better = int((trial.right & ~as_stated.right).sum())
    worse = int((as_stated.right & ~trial.right).sum())
    differences = trial.losses - first.losses
    spread = float(differences.std()) * np.sqrt(len(differences))
    return Row(
        causes=trial.causes,
        options=" ".join([*trial.hypothesis.options, *(["--classes in that order"] if trial.order else [])]),
        images=len(trial.right),
        right=int(trial.right.sum()),
        log_loss=float(trial.losses.mean()),
        better=better,
        worse=worse,
        p_value=float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        told_apart=bool(differences.sum() > 2 * spread) or trial is first,
    )
