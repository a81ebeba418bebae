"""Copies of experts beside the computation: right on any device, and begun before they are needed.

No stream is here. `Streams` stands for a device whose copy stream is as late as it may be. It notes
the order in which both streams were given their work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from piecework_model.layers.offload import LOOK_AHEAD, ExpertCache, HostBytes
from piecework_model.layers.residency import Residency

CPU = torch.device("cpu")
EXPERT_BYTES = 4


@dataclass
class Copied:
    """A copy that was asked for. after: computations that come before it."""

    slot: int
    after: int
    target: Tensor
    source: Tensor
    done: bool = False


@dataclass
class Streams:
    """Computation that is done at once, and copies that are done only when one of them is waited
    for. Then all before it are done too, as on a stream.
    """

    computed: int = 0
    registered: list[int] = field(default_factory=list)
    copies: list[Copied] = field(default_factory=list)
    last_read: dict[int, int] = field(default_factory=dict)
    waits: list[int] = field(default_factory=list)
    base: int = 0

    def register(self, memory: Tensor) -> None:
        self.registered.append(memory.nbytes)

    def mark(self) -> int:
        return self.computed

    def copy(self, target: Tensor, source: Tensor, after: int | None) -> int:
        slot = (target.data_ptr() - self.base) // EXPERT_BYTES
        # What has read the slot must be before the copy, on a device that is far behind the host.
        earlier = max((c.after for c in self.copies if c.slot == slot), default=0)
        assert max(after or 0, earlier) >= self.last_read.get(slot, 0)
        self.copies.append(Copied(slot, after or 0, target, source))
        return len(self.copies)

    def wait(self, copied: int) -> None:
        for copy in self.copies[:copied]:
            if not copy.done:
                copy.target.copy_(copy.source)
                copy.done = True
        self.waits.append(copied)

    def compute(self, *slots: Tensor) -> None:
        """Compute with what is in some slots."""
        self.computed += 1
        for slot in slots:
            self.last_read[(slot.data_ptr() - self.base) // EXPERT_BYTES] = self.computed


def host(layers: int, experts: int, slots: int) -> tuple[Streams, ExpertCache, list[HostBytes]]:
    """Layers whose experts hold their own numbers."""
    streams = Streams()
    cache = ExpertCache(slots * EXPERT_BYTES, EXPERT_BYTES, layers * experts, CPU, streams)
    streams.base = cache.slots.data_ptr()
    sources = [HostBytes(layer, experts, cache) for layer in range(layers)]
    for layer, source in enumerate(sources):
        for expert in range(experts):
            source.writable(expert)[:] = content(layer, expert)
    return streams, cache, sources


def content(layer: int, expert: int) -> Tensor:
    return torch.tensor([layer, expert, layer ^ expert, 7], dtype=torch.uint8)


CHOSEN = st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True).map(sorted)


@settings(deadline=None)
@given(st.integers(1, 30), st.lists(st.lists(CHOSEN, min_size=3, max_size=3), max_size=6))
def test_every_expert_is_whole_when_it_computes_and_stays_until_it_has(
    slots: int, passes: list[list[list[int]]]
) -> None:
    streams, cache, sources = host(layers=3, experts=8, slots=slots)
    for chosen in passes:
        for layer, experts in enumerate(chosen):
            sources[layer].expect(experts)
            for expert in experts:
                slot = sources[layer].on_device(expert)
                assert torch.equal(slot, content(layer, expert))
                streams.compute(slot)
                assert torch.equal(slot, content(layer, expert)), "a copy came too early"
    assert len(cache.residency) <= slots


@settings(deadline=None)
@given(st.integers(1, 30), st.lists(st.lists(CHOSEN, min_size=3, max_size=3), max_size=6))
def test_every_expert_of_a_group_is_whole_until_the_group_has_computed(
    slots: int, passes: list[list[list[int]]]
) -> None:
    streams, cache, sources = host(layers=3, experts=8, slots=slots)
    for chosen in passes:
        for layer, experts in enumerate(chosen):
            seen: list[int] = []
            for table in sources[layer].groups(torch.tensor(experts)):
                group = (table >= 0).nonzero().flatten().tolist()
                places = [cache.slots[int(table[expert])] for expert in group]
                streams.compute(*places)
                for expert, place in zip(group, places, strict=True):
                    assert torch.equal(place, content(layer, expert))
                assert 1 <= len(group) <= cache.group
                seen += group
            assert seen == experts
    assert len(cache.residency) <= slots


def test_the_next_group_is_on_its_way_while_one_computes() -> None:
    layers, experts = 3, 40
    streams, cache, sources = host(layers, experts, slots=36)
    needed = 0
    for layer, source in enumerate(sources):
        for table in source.groups(torch.arange(experts)):
            group = (table >= 0).nonzero().flatten().tolist()
            needed += len(group)
            assert min(needed + LOOK_AHEAD, (layer + 2) * experts) <= len(streams.copies)
            assert len(streams.copies) <= needed + LOOK_AHEAD
            streams.compute(*(cache.slots[int(table[expert])] for expert in group))


def test_more_experts_than_may_be_there_together_are_refused() -> None:
    _, cache, _ = host(layers=1, experts=8, slots=4)
    with pytest.raises(ValueError, match="4 experts are more than 3"):
        cache.fetch(0, range(4))


def test_copies_run_ahead_into_the_next_layer_and_are_bounded() -> None:
    layers, experts = 3, 40
    streams, _, sources = host(layers, experts, slots=36)
    begun_before = 0
    for layer, source in enumerate(sources):
        source.expect(range(experts))
        for expert in range(experts):
            slot = source.on_device(expert)
            needed = layer * experts + expert + 1
            assert len(streams.copies) <= needed + LOOK_AHEAD
            begun_before += len(streams.copies) > needed
            streams.compute(slot)
    assert begun_before > layers * experts * 0.9, "the next ones are on their way"
    assert streams.copies[-1].source[0] == 0, "behind the last layer comes the first again"


def test_what_is_on_the_device_is_not_copied_again() -> None:
    streams, _, sources = host(layers=2, experts=6, slots=12)
    for _ in range(3):
        for source in sources:
            source.expect(range(6))
            for expert in range(6):
                streams.compute(source.on_device(expert))
    assert len(streams.copies) == 12


def test_with_few_slots_nothing_runs_ahead() -> None:
    for slots in (1, 2):
        streams, _, sources = host(layers=2, experts=6, slots=slots)
        sources[0].expect(range(6))
        for expert in range(6):
            streams.compute(sources[0].on_device(expert))
            assert len(streams.copies) == expert + 1


def test_a_loop_keeps_on_the_device_what_is_not_in_transit() -> None:
    experts, slots, rounds = 60, 40, 8
    streams, _, sources = host(1, experts, slots)
    for _ in range(rounds):
        sources[0].expect(range(experts))
        for expert in range(experts):
            streams.compute(sources[0].on_device(expert))
    kept = experts * rounds - len(streams.copies)
    assert kept >= 0.9 * (rounds - 1) * (slots - LOOK_AHEAD - 1)


def test_the_memory_of_a_layer_is_registered_once_and_exactly() -> None:
    streams, _, sources = host(layers=3, experts=5, slots=2)
    assert streams.registered == [5 * EXPERT_BYTES] * 3
    assert sum(source.packed.nbytes for source in sources) == sum(streams.registered)


def test_a_reserved_slot_takes_none_that_is_to_be_kept() -> None:
    residency = Residency(2, 10)
    for key in "ab":
        residency.place(key)
    assert residency.reserve("c", keep={"a", "b"}) is None
    assert residency.reserve("c", keep={"b"}) is not None
    assert "b" in residency and "c" in residency and "a" not in residency
    assert (residency.hits, residency.misses) == (0, 2)
