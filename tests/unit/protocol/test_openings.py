"""Steps in their compact form: packed bytes are read when a step is asked for."""

from __future__ import annotations

import pytest

from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_DENOISING_STEPS
from piecework_protocol.openings import PackedRecords, pack_records
from tests.vectors.traces import step

STEPS = tuple(step(8, number) for number in range(3))


def test_packed_steps_are_the_steps_that_were_packed() -> None:
    packed = PackedRecords(pack_records(STEPS))
    assert (len(packed), packed[1], packed[1:], tuple(packed)) == (3, STEPS[1], STEPS[1:], STEPS)
    assert packed == STEPS and packed == PackedRecords(bytes(packed))
    assert packed != STEPS[:2] and packed != PackedRecords(pack_records(STEPS[:2]))
    assert not PackedRecords(pack_records(()))


def test_packed_steps_are_packed_as_they_are() -> None:
    data = pack_records(STEPS)
    assert pack_records(PackedRecords(data)) is data


def test_what_is_no_step_is_found_when_it_is_asked_for() -> None:
    damaged = PackedRecords(pack_records(STEPS)[:-1])
    assert len(damaged) == 3
    for _ in range(2):
        with pytest.raises(MalformedInput, match="ends too early"):
            damaged[0]


@pytest.mark.parametrize("data", [b"", b"\0\0\0", (MAX_DENOISING_STEPS + 1).to_bytes(4, "big")])
def test_a_wrong_number_of_steps_is_found_at_once(data: bytes) -> None:
    with pytest.raises(MalformedInput):
        PackedRecords(data)
