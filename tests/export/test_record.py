"""A checkpoint against its own record, and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convexport.export import record
from convexport.export.limits import CHANCE_LEVEL, FALSE_ALARM, RECORD_SLACK


def by_hand(population: int, accuracy: float, drawn: int, slack: float) -> int:
    """`fewest_correct` by sums of exact fractions."""
    right = max(round(accuracy * population) - math.ceil(slack * population) - 1, 0)
    wrong, chance = population - right, 0
    for count in range(max(0, drawn - wrong), min(drawn, right) + 1):
        chance += math.comb(right, count) * math.comb(wrong, drawn - count)
        if chance >= FALSE_ALARM * math.comb(population, drawn):
            return count
    raise AssertionError("the chances add up to 1")


@pytest.mark.parametrize("population", [1, 10, 359, 1000])
@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.5, 0.9, 0.994, 1.0])
def test_the_fewest_right_answers_are_those_of_the_hypergeometric_distribution(
    population: int, accuracy: float
) -> None:
    for drawn in {1, max(population // 10, 1), max(population // 2, 1), population}:
        for slack in (0.0, 0.002, 0.05):
            expected = by_hand(population, accuracy, drawn, slack)
            assert record.fewest_correct(population, accuracy, drawn, slack) == expected


def test_an_honest_record_is_refused_about_never_and_a_false_one_at_once() -> None:
    rng = np.random.default_rng(0)
    right = np.arange(10_000) < 9_000
    fewest = record.fewest_correct(10_000, 0.9, 2_000, RECORD_SLACK)
    drawn = [int(rng.choice(right, 2_000, replace=False).sum()) for _ in range(200)]
    assert min(drawn) >= fewest > 1_730
    # The whole set leaves nothing to chance: only the images that another machine may decide differently.
    assert record.fewest_correct(10_000, 0.9, 10_000, RECORD_SLACK) == 9_000 - 21
    assert record.fewest_correct(360, 1.0, 360, RECORD_SLACK) == 358
    assert record.fewest_correct(100, 0.0, 10, RECORD_SLACK) == 0


@pytest.mark.parametrize(("drawn", "chance"), [(24, 1 / 3), (359, 0.1), (2000, 0.95), (50, 0.001)])
def test_better_than_chance_is_the_first_count_that_chance_reaches_too_seldom(drawn: int, chance: float) -> None:
    fewest = record.fewest_above_chance(drawn, chance)

    def reaches(count: int) -> float:
        return sum(math.comb(drawn, k) * chance**k * (1 - chance) ** (drawn - k) for k in range(count, drawn + 1))

    assert reaches(fewest) <= CHANCE_LEVEL < reaches(fewest - 1)


@pytest.mark.parametrize(("drawn", "chance"), [(1, 0.1), (2, 0.5), (5, 0.5), (9, 1.0)])
def test_of_a_few_images_all_right_always_suffice(drawn: int, chance: float) -> None:
    assert record.fewest_above_chance(drawn, chance) <= drawn


def test_chance_gives_each_class_as_often_as_the_network_does() -> None:
    truth = np.array([0] * 95 + [1] * 5)
    always = np.zeros(100, np.int64)
    finds_the_rare_class = np.where(np.arange(100) >= 90, 1, 0)  # and five of the others
    assert record.chance_of(always, truth, 2) == pytest.approx(0.95)
    assert record.chance_of(finds_the_rare_class, truth, 2) == pytest.approx(0.95 * 0.9 + 0.05 * 0.1)
    assert record.chance_of(np.array([0, 1]), np.array([2, 3]), 4) == 0.25
