"""The gateway's line: nobody is declined who could be served, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref

import pytest

from piecework.client.gateway.line import LineFull, WaitingLine, WaitOver
from tests.support.virtual_time import simulate
from tests.support.waiting import pass_time


class Workers:
    """Slots at the workers of each model. Whoever finds none is told to ask again."""

    def __init__(self, slots: dict[str, int], job_s: float = 1.0) -> None:
        self.slots, self.job_s = slots, job_s
        self.refused = 0
        self.order: list[int] = []

    async def job(self, line: WaitingLine, number: int, model: str, caller: str = "") -> None:
        async with line.turn(model, caller) as turn:
            while self.slots[model] == 0:
                self.refused += 1
                await pass_time(0.01)
                await turn.again(2.0)
            self.slots[model] -= 1
            self.order.append(number)
            turn.accepted()
            try:
                await pass_time(self.job_s)
            finally:
                self.slots[model] += 1


def test_twenty_requests_at_two_slots_are_all_served_in_their_order() -> None:
    workers = Workers({"m": 2})

    async def scene() -> float:
        line = WaitingLine(places=64, waiting=256, wait_s=60)
        await asyncio.gather(*(workers.job(line, n, "m") for n in range(20)))
        assert (line.running, line.waiting) == (0, 0)
        return asyncio.get_running_loop().time()

    assert simulate(scene()) <= 12
    assert workers.order == sorted(workers.order)
    assert workers.refused <= 60


def test_a_model_whose_workers_are_free_does_not_wait_for_one_whose_are_not() -> None:
    workers = Workers({"full": 0, "free": 50})

    async def scene() -> None:
        line = WaitingLine(places=64, waiting=256, wait_s=60)
        stuck = [asyncio.create_task(workers.job(line, n, "full")) for n in range(10)]
        await pass_time(5)
        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(workers.job(line, n, "free") for n in range(50)))
        assert asyncio.get_running_loop().time() - start <= 1.1
        ended = await asyncio.gather(*stuck, return_exceptions=True)
        assert all(isinstance(error, WaitOver) for error in ended)
        assert asyncio.get_running_loop().time() <= 61
        assert (line.running, line.waiting) == (0, 0)

    simulate(scene())


def test_too_many_are_told_at_once() -> None:
    workers = Workers({"m": 1})

    async def scene() -> None:
        line = WaitingLine(places=1, waiting=2, wait_s=60)
        jobs = [asyncio.create_task(workers.job(line, n, "m")) for n in range(3)]
        await pass_time(0.1)
        with pytest.raises(LineFull, match="too many"):
            await workers.job(line, 3, "m")
        await asyncio.gather(*jobs)

    simulate(scene())


def test_one_key_takes_half_of_the_waiting_places_at_most() -> None:
    workers = Workers({"m": 1})

    async def scene() -> None:
        line = WaitingLine(places=1, waiting=8, wait_s=60)
        jobs = [asyncio.create_task(workers.job(line, n, "m", "greedy")) for n in range(5)]
        await pass_time(0.1)
        with pytest.raises(LineFull, match="of this API key"):
            await workers.job(line, 5, "m", "greedy")
        jobs += [asyncio.create_task(workers.job(line, n, "m", "modest")) for n in range(6, 10)]
        await pass_time(0.1)
        with pytest.raises(LineFull, match="too many requests wait"):
            await workers.job(line, 11, "m")
        await asyncio.gather(*jobs)
        assert (line.running, line.waiting) == (0, 0)

    simulate(scene())
    assert len(workers.order) == 9


def test_a_modest_caller_is_not_behind_all_of_a_greedy_one() -> None:
    """Wherever the shortage is: in the gateway's places, or at the model's workers."""
    for places, slots in ((2, 50), (64, 2)):
        workers = Workers({"m": slots})

        async def scene(places: int = places, workers: Workers = workers) -> None:
            line = WaitingLine(places=places, waiting=256, wait_s=200)
            greedy = [asyncio.create_task(workers.job(line, n, "m", "greedy")) for n in range(40)]
            await pass_time(0.5)
            modest = [
                asyncio.create_task(workers.job(line, 100 + n, "m", "modest")) for n in (0, 1)
            ]
            await asyncio.gather(*greedy, *modest)

        simulate(scene())
        assert max(workers.order.index(100), workers.order.index(101)) < 10
        assert [n for n in workers.order if n < 100] == list(range(40))


class Caller(str):
    """A name that tells when nobody holds it any more."""


@pytest.mark.parametrize("busy", ["the places", "the workers"])
def test_the_line_keeps_nothing_of_a_request_that_gave_up(busy: str) -> None:
    """Whoever takes the next one out of the line would have to walk past all of them."""
    workers = Workers({"m": 1 if busy == "the places" else 0, "other": 1}, job_s=50)

    async def scene() -> None:
        line = WaitingLine(places=1 if busy == "the places" else 8, waiting=8, wait_s=40)
        first = asyncio.create_task(workers.job(line, 0, "m"))
        await pass_time(1)
        caller = Caller("impatient")
        kept = weakref.ref(caller)
        waits = asyncio.create_task(workers.job(line, 1, "m", caller))
        del caller
        await pass_time(1)
        assert kept() is not None
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        del waits
        await pass_time(1)  # the loop lets go of what it has just told
        gc.collect()
        assert kept() is None
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (line.running, line.waiting) == (0, 0)

    simulate(scene())


@pytest.mark.parametrize("seed", range(40))
def test_whoever_stays_is_served_whatever_others_do(seed: int) -> None:
    """Callers that leave at any moment, models that fill and empty, few places and many."""
    chance = random.Random(seed)
    models = ["a", "b", "c"][: chance.randrange(1, 4)]
    workers = Workers({m: chance.randrange(1, 4) for m in models}, job_s=0.5)
    fate: dict[str, int] = {"served": 0, "left": 0}

    async def caller(line: WaitingLine, number: int) -> None:
        await pass_time(chance.uniform(0, 10))
        who = chance.choice(["", "a", "b"])
        work = asyncio.create_task(workers.job(line, number, chance.choice(models), who))
        if chance.random() < 0.4:
            await pass_time(chance.uniform(0, 3))
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            fate["left"] += 1
        else:
            await work
            fate["served"] += 1

    async def scene() -> None:
        line = WaitingLine(places=chance.randrange(1, 9), waiting=256, wait_s=300)
        await asyncio.gather(*(caller(line, n) for n in range(60)))
        assert (line.running, line.waiting) == (0, 0)
        assert sum(fate.values()) == 60

    simulate(scene())
