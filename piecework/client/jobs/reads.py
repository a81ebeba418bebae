"""The answers of a read as one value: probabilities over all draws, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from piecework.base.amounts import Token, TokenAmount
from piecework.client.errors import WorkerUnreachable
from piecework.client.jobs.events import JobFinished, JobStarted, ReadAnswers
from piecework.client.jobs.requests import ReadRequest
from piecework.client.jobs.run import JobRun
from piecework_protocol.kinds.read import ONE, Question


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one question.

    Attributes:
        question: What was asked.
        probabilities: Of each label, in order. They are means over the draws, and add up to 1.
        errors: The standard error of each probability. None after a single draw, which has none.
    """

    question: Question
    probabilities: tuple[float, ...]
    errors: tuple[float, ...] | None

    @property
    def label(self) -> str:
        """The most probable label. Of equals, the first."""
        best = max(range(len(self.probabilities)), key=self.probabilities.__getitem__)
        return self.question.labels[best].name

    def probability(self, label: str) -> float:
        """Return the probability of a label.

        Raises:
            KeyError: The question has no such label.
        """
        for known, probability in zip(self.question.labels, self.probabilities, strict=True):
            if known.name == label:
                return probability
        raise KeyError(label)


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What `PieceworkClient.read` returns.

    Attributes:
        started: Which worker and model took the job, and the most that it could cost.
        decisions: The answers, in the order of the questions.
        finished: What the job took.
        token: What the amounts are counted in.
    """

    started: JobStarted
    decisions: tuple[Decision, ...]
    finished: JobFinished
    token: Token

    @property
    def cost(self) -> TokenAmount:
        """What the job has cost."""
        return self.token.amount(self.finished.cost)


async def collect_read(run: JobRun, request: ReadRequest, token: Token) -> ReadResult:
    """Follow a read to its end.

    Raises:
        ClientError: as `PieceworkClient.read`.
    """
    started: JobStarted | None = None
    finished: JobFinished | None = None
    draws: list[list[tuple[int, ...]]] = [[] for _ in request.questions]
    async with run:
        async for event in run:
            if isinstance(event, JobStarted):
                started = event
            elif isinstance(event, ReadAnswers):
                for question, answer in zip(event.questions, event.answers, strict=True):
                    draws[question].append(answer)
            elif isinstance(event, JobFinished):
                finished = event
    if started is None or finished is None or not all(draws):
        raise WorkerUnreachable("the job ended without all answers")
    decisions = tuple(map(decide, request.questions, draws))
    return ReadResult(started, decisions, finished, token)


def decide(question: Question, draws: Sequence[tuple[int, ...]]) -> Decision:
    """Average the draws of a question, each in 1/65536."""
    shares = [[share / ONE for share in shares] for shares in zip(*draws, strict=True)]
    means = tuple(statistics.fmean(label) for label in shares)
    if len(draws) < 2:
        return Decision(question, means, None)
    errors = tuple(statistics.stdev(label) / math.sqrt(len(draws)) for label in shares)
    return Decision(question, means, errors)
