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
    """Measures what a comparison of files with torch cannot show.

    Args:
        network: The network and its stated facts.
        expected: Its own answers.
        title: The data set of the images; empty if there is none.

    Returns:
        The number of weight tensors that are all zeros; with labels, the accuracy compared with chance; with a stated
        accuracy, the accuracy compared with it, overall and per class.
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
    if network.stated_accuracy is not None:  # of the same images: one of them may get another label
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
        # If two classes have the same name, a stated accuracy by name belongs to neither.
        if recorded is None or not members.any() or expected.classes.count(name) > 1:
            continue
        lowest = fewest_correct(int(sample.population[index]), recorded, int(members.sum()), slack)
        below += int(correct[members].sum()) < lowest
    measures.append(measure("classes below their recorded accuracy", below, "==", 0))
    return measures


def chance_of(answers: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> float:
    """How often guesses would be right that give each class as often as the network does, but to random images.

    It is at least 1 / `classes`. By this measure, a network that always answers the most frequent class is no better
    than chance, and one that finds a rare class with a few false alarms is better.
    """
    shares = [np.bincount(labels, minlength=classes) / len(labels) for labels in (answers, truth)]
    return max(float(shares[0] @ shares[1]), 1 / classes)


def fewest_above_chance(drawn: int, chance: float) -> int:
    """The smallest number of right answers among `drawn` that is better than chance: a one-sided binomial test.

    By `chance`, so many or more are right with a probability of at most `CHANCE_LEVEL`. If all of them are right, that
    is always enough, because so few images can show nothing.
    """
    return min(int(binom.isf(CHANCE_LEVEL, drawn, chance)) + 1, drawn)


def fewest_correct(population: int, accuracy: float, drawn: int, slack: float) -> int:
    """The smallest number of right answers among `drawn` images that agrees with a stated accuracy.

    It is stated that a share `accuracy` of `population` images is right. Drawn without replacement, the right answers
    are hypergeometric: fewer than this have a chance below `FALSE_ALARM`. `slack` is the share of the population that
    may get another label on another machine; one image always may.
    """
    right = max(round(accuracy * population) - math.ceil(slack * population) - 1, 0)
    return int(hypergeom.ppf(FALSE_ALARM, population, right, drawn))
