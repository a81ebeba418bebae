"""The `max_price` of a request, shared by the jobs of all its answers. Pure."""

from __future__ import annotations


class Pot:
    """What the jobs of one request may still cost together, in base units.

    A job takes its limit out of the pot before it is signed. At its end it puts back what it was
    not paid. So the limits of all jobs under way and all payments never pass the price together.
    An answer runs one job at a time.
    """

    def __init__(self, price: int, answers: int) -> None:
        """Fill the pot for so many answers, numbered from 0."""
        self._left = price
        self._idle = set(range(answers))
        self._limits: dict[int, int] = {}

    def share(self, answer: int) -> int:
        """Return what the next job of an answer may cost: an equal part for each idle answer."""
        return self._left // len(self._idle | {answer})

    def take(self, answer: int, limit: int) -> None:
        """Take the limit of an answer's job out."""
        self._idle.discard(answer)
        self._left -= limit
        self._limits[answer] = limit

    def pay(self, answer: int, amount: int) -> None:
        """Pay for a canvas out of the limit of the answer's job."""
        self._limits[answer] -= amount

    def put_back(self, answer: int) -> None:
        """Put back what an answer's job was not paid. The answer may want another job."""
        self._left += self._limits.pop(answer)
        self._idle.add(answer)

    def leave(self, answer: int) -> None:
        """An answer is whole: its part goes to the others."""
        self._idle.discard(answer)
