"""Device memory that is lent: what waits on the host comes back bit for bit, or stays there."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, UntypedStorage

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.engine import Engine
from piecework_model.engine.parking import ParkedMemory, tensors_on
from tests.support.model.model_runs import make_request, run, run_alone


class FullDevice:
    """A storage on a device that somebody else fills: it takes `rooms` of its resizes."""

    def __init__(self, rooms: int) -> None:
        self.rooms, self.size = rooms, 0

    def resize_(self, size: int) -> None:
        if size and not self.rooms:
            raise torch.OutOfMemoryError("out of memory")
        self.rooms -= bool(size)
        self.size = size

    def copy_(self, source: UntypedStorage) -> None:
        assert self.size == source.nbytes()


def memory_of(executor: BatchedExecutor, name: str) -> list[Tensor]:
    """The caches and the soft embedding of a sequence."""
    sequence = executor._sequences[name]
    soft = sequence.state.soft
    assert soft is not None
    return [*sequence.cache.keys, *sequence.cache.values, soft]


def test_parked_memory_is_empty_and_comes_back_in_place_under_every_view() -> None:
    whole = torch.arange(64, dtype=torch.float32)
    part, wanted = whole[8:16].view(2, 4), whole.clone()
    parked = ParkedMemory.park([whole, part])
    assert parked.nbytes == 256 and whole.untyped_storage().nbytes() == 0
    parked.restore()
    assert torch.equal(whole, wanted) and torch.equal(part, wanted[8:16].view(2, 4))


def test_memory_that_finds_no_room_stays_on_the_host_and_comes_later() -> None:
    first, second = FullDevice(2), FullDevice(0)
    copies = [(device, cast(Any, UntypedStorage)(8)) for device in (first, second)]
    parked = ParkedMemory(cast(Any, copies))
    with pytest.raises(torch.OutOfMemoryError):
        parked.restore()
    assert first.size == 0 and parked.nbytes == 16
    second.rooms = 1
    parked.restore()
    assert (first.size, second.size, parked.nbytes) == (8, 8, 0)


def test_every_tensor_of_the_device_is_found() -> None:
    weights, views = torch.zeros(3), [torch.zeros(4)[1:]]
    found = {id(tensor) for tensor in tensors_on(torch.device("cpu"))}
    assert {id(weights), id(views[0])} <= found
    assert not tensors_on(torch.device("cuda"))


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_sequence_whose_memory_was_away_ends_in_the_same_leaves(
    bundled: LoadedModel, steps: int
) -> None:
    request = make_request((105, 106, 107, 108), max_steps=12, confidence_threshold=0.0)
    model = copy.deepcopy(bundled.model)
    executor = BatchedExecutor(model, bundled.limits)
    engine = Engine(bundled, max_sequences=1, executor=executor)
    engine.submit(request)
    before = [event for _ in range(steps) for event in engine.step()]
    parked = ParkedMemory.park([*model.parameters(), *memory_of(executor, "job")])
    assert parked.nbytes > 2**20
    parked.restore()
    assert [*before, *run(engine)["job"]] == run_alone(bundled, request)


def test_on_a_cpu_there_is_nothing_to_free(bundled: LoadedModel) -> None:
    executor = BatchedExecutor(bundled.model, bundled.limits)
    assert executor.park() == 0
    executor.unpark()
