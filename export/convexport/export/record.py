"""Compares a checkpoint with its own header: stated accuracy, better than chance, no tensor of zeros."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom

from convexport.export.limits import CHANCE_LEVEL, FALSE_ALARM, OTHER_COPY_SLACK, RECORD_SLACK
from convexport.export.measures import Reference, measure, predicted
from convexport.export.sources.network import Network
from convexport.runtime.manifest import Measure

ABOVE_CHANCE = "torch accuracy, above chance"
STATED = "torch accuracy, as stated"
STATED_PRECISION = "torch mean average precision, as stated"


def verify_network(network: Network, expected: Reference, title: str) -> list[Measure]:
    """Measures what no comparison of files with torch can show.

    Args:
        network: The network and what is said of it.
        expected: Its own answers.
        title: The data set at hand; empty where there is none.

    Returns:
        Weight tensors of zeros; where the images have labels, accuracy against chance; where an accuracy is
        stated too, that one against it, overall and per class.
    """
    facts, sample = network.facts, expected.sample
    measures = [measure("weight tensors of zeros", network.dead, "==", 0)]
    precision = expected.mean_average_precision(expected.probabilities)
    if precision is not None and network.stated_accuracy is not None:
        lowest = network.stated_accuracy - 1 / len(sample)
        measures.append(measure(STATED_PRECISION, precision, ">=", lowest))
    correct = expected.correct(expected.probabilities)
    if sample.truth is None or correct is None:
        return measures
    accuracy = float(correct.mean())
    chance = chance_of(predicted(expected.probabilities), sample.truth, len(expected.classes))
    measures.append(measure(ABOVE_CHANCE, accuracy, ">=", fewest_above_chance(len(sample), chance) / len(sample)))
    if network.stated_accuracy is not None:  # of these very images: one of them may be decided differently
        measures.append(measure(STATED, accuracy, ">=", network.stated_accuracy - 1 / len(sample)))
    if facts.accuracy.test is None:
        return measures
    slack = RECORD_SLACK if title == facts.dataset.title else OTHER_COPY_SLACK
    fewest = fewest_correct(int(sample.population.sum()), facts.accuracy.test, len(sample), slack)
    measures.append(measure("torch accuracy, as recorded", accuracy, ">=", fewest / len(sample)))
    below = 0
    for index, name in enumerate(expected.classes):
        members = sample.truth == index
        recorded = facts.accuracy.per_class.get(name)
        # A record by name says nothing of one of two classes with that name.
        if recorded is None or not members.any() or expected.classes.count(name) > 1:
            continue
        lowest = fewest_correct(int(sample.population[index]), recorded, int(members.sum()), slack)
        below += int(correct[members].sum()) < lowest
    measures.append(measure("classes below their recorded accuracy", below, "==", 0))
    return measures


def chance_of(answers: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> float:
    """How often answers without skill are right: given as often as the network gives each, but to any image.

    It is 1 of `classes` at least. A network that always gives the most frequent class has no skill by it, while one
    that finds a rare class at the price of a few false alarms has.
    """
    shares = [np.bincount(labels, minlength=classes) / len(labels) for labels in (answers, truth)]
    return max(float(shares[0] @ shares[1]), 1 / classes)


def fewest_above_chance(drawn: int, chance: float) -> int:
    """The smallest number of right answers among `drawn` that is better than chance: a one-sided binomial test.

    So many or more come by `chance` with a probability of `CHANCE_LEVEL` at most. All of them right always suffice: so
    few images can show nothing.
    """
    return min(int(binom.isf(CHANCE_LEVEL, drawn, chance)) + 1, drawn)


def fewest_correct(population: int, accuracy: float, drawn: int, slack: float) -> int:
    """The smallest number of right answers among `drawn` images that an honest record allows.

    The record says that a share `accuracy` of `population` images is answered right. Drawn without replacement, the
    right answers are hypergeometric: fewer than this come with a chance below `FALSE_ALARM`. `slack` is the share of
    the population that may be decided differently on another machine; one image always may.
    """
    right = max(round(accuracy * population) - math.ceil(slack * population) - 1, 0)
    return int(hypergeom.ppf(FALSE_ALARM, population, right, drawn))
