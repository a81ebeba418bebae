"""What is measured of answers. Pure functions."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from piecework_model.training import grammar


def well_formed_share(texts: Sequence[str]) -> float:
    """Measure the share of characters in sentences which the grammar itself could have written.

    The space between two such sentences counts with them.
    """
    pattern = grammar.sentence_patterns()
    total = sum(len(text) for text in texts)
    wrong = sum(len(pattern.sub("", text).strip()) for text in texts)
    return 1 - wrong / total if total else 0.0


def doubled_word_share(texts: Sequence[str]) -> float:
    """Measure the share of words that repeat the word before them."""
    words: list[list[str]] = [re.findall(r"\w+", text.lower()) for text in texts]
    doubled = sum(first == second for each in words for first, second in itertools.pairwise(each))
    return doubled / max(1, sum(map(len, words)))


def followed(text: str, nouns: Sequence[str]) -> list[bool]:
    """Say, for each noun that was asked for, whether the story has it."""
    words = set(re.findall(r"\w+", text.lower()))
    return [noun in words for noun in nouns]


def flat_object(text: str) -> dict[str, str] | None:
    """Parse a JSON object of texts that are not empty, or return None."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    good = isinstance(value, dict) and all(isinstance(v, str) and v for v in value.values())
    return value if good else None


@dataclass(frozen=True, slots=True)
class Judged:
    """One answered question: the probability of the label chosen, and whether it was right."""

    confidence: float
    right: bool


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of like confidence: how many, their mean confidence, and the share that is right."""

    least: float
    most: float
    count: int
    confidence: float
    right: float


def judge(shares: tuple[int, ...], right: int) -> Judged:
    """Judge a question's probabilities by the index of its right label."""
    best = max(range(len(shares)), key=shares.__getitem__)
    return Judged(shares[best] / sum(shares), best == right)


def accuracy(answers: Sequence[Judged]) -> float:
    """Measure the share of right answers."""
    return sum(answer.right for answer in answers) / max(1, len(answers))


def calibration(answers: Sequence[Judged], edges: Sequence[float]) -> list[Bin]:
    """Sort answers into bins of confidence between neighbouring edges. Empty bins are left out."""
    bins = []
    for least, most in itertools.pairwise(edges):
        last = most == edges[-1]
        inside = [a for a in answers if least <= a.confidence and (a.confidence < most or last)]
        if inside:
            mean = sum(a.confidence for a in inside) / len(inside)
            bins.append(Bin(least, most, len(inside), mean, accuracy(inside)))
    return bins


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Compute the mean distance of confidence and share right, weighted by count."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.confidence - each.right) for each in bins) / max(1, total)
