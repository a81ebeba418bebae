"""How memories of workers change and fade. Pure.

Counts halve every half-life, because machines and operators change. A worker that was silent rests,
longer each time, and comes last in the meantime. It is never shut out for that.
"""

from __future__ import annotations

from dataclasses import replace

from piecework.client.journal.records import AnswerLength, Experience, Measured
from piecework.client.limits import (
    EXPERIENCE_HALF_LIFE_S,
    LONGEST_SILENT_REST_S,
    OWN_JOBS_THAT_COUNT_FULLY,
    SILENT_REST_S,
)
from piecework_protocol.types import Timestamp

# A worker that nobody knows is taken to keep its word three times out of four.
PRIOR_SUCCESSES = 3.0
PRIOR_FAILURES = 1.0


def reliability(memory: Experience, now: Timestamp) -> float:
    """Share of jobs that a worker is expected to finish, from decayed counts and a prior; 0 < share
    < 1."""
    successes, failures = decayed(memory, now)
    return (successes + PRIOR_SUCCESSES) / (successes + failures + PRIOR_SUCCESSES + PRIOR_FAILURES)


def decayed(memory: Experience, now: Timestamp) -> tuple[float, float]:
    """The counts as of `now`. A clock that went back decays nothing."""
    factor = _factor(memory.updated_at, now)
    return memory.successes * factor, memory.failures * factor


def learn(memory: Experience, now: Timestamp, *, success: bool) -> Experience:
    """The memory after one more job. A job that ran to its end makes up for silences."""
    successes, failures = decayed(memory, now)
    return replace(
        memory,
        successes=successes + success,
        failures=failures + (not success),
        updated_at=Timestamp(now),
        silences=0.0 if success else memory.silences,
    )


def learn_broken(memory: Experience, now: Timestamp, clause: str) -> Experience:
    """The memory of a worker that was caught breaking a clause."""
    return replace(learn(memory, now, success=False), broken_clause=clause, broken_at=now)


def learn_silence(memory: Experience, now: Timestamp) -> Experience:
    """The memory of a worker that gave no answer or no progress: a failure, and a rest."""
    return replace(
        learn(memory, now, success=False),
        silences=memory.silences * _factor(memory.silent_at, now) + 1,
        silent_at=now,
    )


def learn_answer(memory: Experience, now: Timestamp) -> Experience:
    """The memory of a worker that answered a dial."""
    return replace(memory, answered_at=now)


def is_resting(memory: Experience, now: Timestamp) -> bool:
    """Whether a worker comes last because it was silent a while ago."""
    if memory.silences <= 0:
        return False
    rest = min(LONGEST_SILENT_REST_S, SILENT_REST_S * 2 ** (min(memory.silences, 32.0) - 1))
    return abs(now - memory.silent_at) < rest


def learn_measure(
    memory: Measured,
    now: Timestamp,
    *,
    seconds: float,
    claimed_seconds: float,
    steps: float,
    usual_steps: float,
) -> Measured:
    """The sums after one more job of the client's own."""
    factor = _factor(memory.updated_at, now)
    return replace(
        memory,
        jobs=memory.jobs * factor + 1,
        seconds=memory.seconds * factor + seconds,
        claimed_seconds=memory.claimed_seconds * factor + claimed_seconds,
        steps=memory.steps * factor + steps,
        usual_steps=memory.usual_steps * factor + usual_steps,
        updated_at=now,
    )


def slowness(memory: Measured, now: Timestamp) -> float:
    """How many of the client's seconds one claimed second takes: 1 without jobs of its own."""
    return _blended(memory, now, memory.seconds, memory.claimed_seconds)


def blended_steps(memory: Measured, now: Timestamp, claimed: float, usual: float) -> float:
    """Denoising steps of an answer, by the worker's claim and by the client's own jobs.

    usual: what a usual worker takes for it, which the client's own jobs are compared with.
    """
    if memory.usual_steps <= 0:
        return claimed
    weight = _weight(memory.jobs, memory.updated_at, now)
    return (1 - weight) * claimed + weight * usual * memory.steps / memory.usual_steps


def own_jobs(memory: Measured, now: Timestamp) -> float:
    """How many jobs of the client's own still count."""
    return memory.jobs * _factor(memory.updated_at, now)


def learn_length(memory: AnswerLength, now: Timestamp, tokens: int, *, ended: bool) -> AnswerLength:
    """The sums after one more answer. `ended`: it ended by itself.

    One that a limit cut shorter than usual says nothing.
    """
    if not ended and (memory.jobs <= 0 or tokens * memory.jobs <= memory.tokens):
        return memory
    factor = _factor(memory.updated_at, now)
    return replace(
        memory,
        jobs=memory.jobs * factor + 1,
        tokens=memory.tokens * factor + tokens,
        updated_at=now,
    )


def usual_length(memory: AnswerLength, now: Timestamp, claimed: float | None) -> float | None:
    """Tokens of an answer: by the workers' claims at first, then by the client's own jobs.

    None: nobody knows.
    """
    if memory.jobs <= 0:
        return claimed
    own = memory.tokens / memory.jobs
    if claimed is None:
        return own
    weight = _weight(memory.jobs, memory.updated_at, now)
    return (1 - weight) * claimed + weight * own


def _blended(memory: Measured, now: Timestamp, own: float, claimed: float) -> float:
    """The claim at first, and the client's own ratio in the measure of its own jobs."""
    if claimed <= 0:
        return 1.0
    weight = _weight(memory.jobs, memory.updated_at, now)
    return (1 - weight) + weight * own / claimed


def _weight(jobs: float, since: Timestamp, now: Timestamp) -> float:
    """How much the client's own jobs count beside a claim."""
    return min(1.0, jobs * _factor(since, now) / OWN_JOBS_THAT_COUNT_FULLY)


def _factor(since: Timestamp, now: Timestamp) -> float:
    return float(0.5 ** (max(0, now - since) / EXPERIENCE_HALF_LIFE_S))
