"""Recorded pieces of a step: buckets, buffers, bounds, and the same bits as without recordings.

The recorder replays by calling (tests/support/model/recorder.py); no graph was captured.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.layers.graphs import (
    EagerPieceRunner,
    GraphPieceRunner,
    PieceRunner,
)
from tests.support.model.recorder import EchoRecorder

HIDDEN = 8
AMPLE_BYTES = 10**9


def double(x: Tensor) -> tuple[Tensor, ...]:
    return (2 * x,)


def recorded(
    max_recordings: int = 64, max_bytes: int = AMPLE_BYTES, refusal: str = ""
) -> GraphPieceRunner:
    return GraphPieceRunner(EchoRecorder(refusal), max_bytes, max_recordings)


def record(pieces: GraphPieceRunner, *counts: int, name: str = "double") -> None:
    """Offer steps of so many tokens for recording, in this order."""
    with pieces.recording():
        for count in counts:
            repeat(pieces, count, name=name)


def repeat(pieces: GraphPieceRunner, count: int, times: int = 1, name: str = "double") -> None:
    """Run a piece, which is right however it runs."""
    for _ in range(times):
        assert torch.equal(pieces.run(name, double, tokens(count))[0], 2 * tokens(count))


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn((count, HIDDEN), generator=torch.Generator().manual_seed(seed))


@dataclass
class Stack:
    """Layers of real modules, cut as a step would be: a piece is what stands between two
    attentions. It hands on the residual and the next queries together.
    """

    layers: list[nn.Module]

    def run(self, pieces: PieceRunner, hidden: Tensor, canvas: int) -> Tensor:
        """[T, H] to [T, H]. Attention is outside, row by row."""
        residual, queries = pieces.run("first", lambda x: (x, self.layers[0](x)), hidden)
        for index, layer in enumerate(self.layers):
            rows = queries.view(-1, canvas, HIDDEN)
            attended = (torch.softmax(rows @ rows.mT, dim=-1) @ rows).view_as(residual)
            residual, queries = pieces.run(
                f"behind-{index}", lambda x, y, m=layer: (x + m(y), m(x - y)), residual, attended
            )
        return residual


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 5), max_size=5),
    st.lists(st.integers(1, 5), min_size=1, max_size=25),
    st.integers(1, 12),
    st.integers(0, 3000),
)
def test_any_sequence_of_row_counts_gives_the_bits_of_plain_calls(
    ladder: list[int], rows: list[int], room: int, room_bytes: int
) -> None:
    """With room for fewer recordings than there are buckets, the others are called."""
    canvas = 4
    with torch.inference_mode():
        stack = Stack([nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])
        pieces = recorded(room, room_bytes)
        with pieces.recording():
            for count in ladder:
                stack.run(pieces, torch.zeros(count * canvas, HIDDEN), canvas)
        for step, count in enumerate(rows):
            hidden = tokens(count * canvas, seed=step)
            expected = stack.run(EagerPieceRunner(), hidden, canvas)
            assert torch.equal(stack.run(pieces, hidden, canvas), expected)
            assert pieces.recordings <= room and pieces.held_bytes <= room_bytes


def test_the_feed_forward_of_the_bundled_model_replays_to_the_same_bits(
    bundled: LoadedModel,
) -> None:
    layer = bundled.model.model.decoder.layers[0]

    def dense(hidden: Tensor) -> tuple[Tensor, ...]:
        normed = layer.pre_feedforward_layernorm(hidden)
        return (layer.post_feedforward_layernorm_1(layer.mlp(normed)),)

    pieces = recorded()
    width = bundled.model.config.text_config.hidden_size
    with torch.inference_mode():
        with pieces.recording():
            pieces.run("dense", dense, torch.zeros(64, width))
        for seed in range(2):
            hidden = torch.randn((64, width), generator=torch.Generator().manual_seed(seed))
            assert torch.equal(pieces.run("dense", dense, hidden)[0], dense(hidden)[0])
    assert (pieces.recordings, pieces.replays) == (1, 2)


def test_outputs_are_gone_after_the_next_run_of_any_piece() -> None:
    pieces = recorded()
    record(pieces, 4, name="first")
    record(pieces, 4, name="second")
    (first,) = pieces.run("first", double, tokens(4))
    pieces.run("second", double, torch.ones(4, HIDDEN))
    assert first.tolist() == [[2.0] * HIDDEN] * 4


def test_an_output_may_be_the_next_input_at_another_place() -> None:
    """Inputs are copied one after another; none may stand in the buffer of another."""
    pieces = recorded()
    with pieces.recording():
        pieces.run("swap", lambda x, y: (y, x), tokens(4), tokens(4))
    for seed in range(3):
        first, second = tokens(4, seed), tokens(4, seed + 100)
        left, right = pieces.run("swap", lambda x, y: (y, x), first, second)
        left, right = pieces.run("swap", lambda x, y: (y, x), right, left)
        assert torch.equal(left, second) and torch.equal(right, first)
    assert pieces.replays == 6


def test_recording_a_piece_does_not_spoil_what_it_hands_on() -> None:
    """Its inputs may stand in the buffers of its own outputs: those of the piece before it."""
    pieces = recorded()
    first, second = tokens(4, 1), tokens(4, 2)
    with pieces.recording():
        for _ in range(2):
            left, right = pieces.run("before", lambda x, y: (x + 0, y + 0), first, second)
            left, right = pieces.run("swap", lambda x, y: (y, x), left, right)
            assert torch.equal(left, second) and torch.equal(right, first)
    assert pieces.recordings == 2


def test_nothing_is_recorded_while_jobs_run() -> None:
    pieces = recorded()
    repeat(pieces, 4, times=10)
    assert (pieces.recordings, pieces.replays) == (0, 0)
    record(pieces, 4)
    repeat(pieces, 4, times=3)
    repeat(pieces, 5, times=10)
    assert (pieces.recordings, pieces.replays) == (1, 3)


def test_shorter_steps_share_the_buffers_of_the_longest() -> None:
    pieces = recorded()
    record(pieces, 8, 4, 1)
    assert pieces.recordings == 3
    assert pieces.held_bytes == 2 * tokens(8).nbytes
    for count in (4, 8, 1, 8, 4):
        repeat(pieces, count)
    assert pieces.replays == 5


def test_a_longer_step_after_a_shorter_one_counts_with_both() -> None:
    pieces = recorded()
    record(pieces, 4, 8)
    assert pieces.held_bytes == 2 * tokens(4).nbytes + 2 * tokens(8).nbytes
    repeat(pieces, 4)
    repeat(pieces, 8)


def test_pieces_shapes_and_types_have_buckets_of_their_own() -> None:
    pieces = recorded()
    record(pieces, 5, 4)
    record(pieces, 4, name="other")
    with pieces.recording():
        pieces.run("double", double, tokens(4).to(torch.bfloat16))
    assert pieces.recordings == 4


def test_pieces_of_one_shape_share_their_buffers() -> None:
    pieces = recorded()
    record(pieces, 4)
    held = pieces.held_bytes
    assert held == 2 * tokens(4).nbytes  # one input, one output
    for name in ("a", "b", "c"):
        record(pieces, 4, name=name)
    assert (pieces.recordings, pieces.held_bytes) == (4, held)


def test_more_pieces_than_fit_keep_the_recordings_that_there_are() -> None:
    pieces = recorded(max_recordings=2)
    for name in ("a", "b", "c"):
        record(pieces, 4, name=name)
    for name in ("a", "b", "c"):
        repeat(pieces, 4, times=20, name=name)
    assert (pieces.recordings, pieces.replays) == (2, 40)
    assert "no room" in next(iter(pieces.refusals.values()))


def test_what_is_larger_than_the_room_is_called() -> None:
    pieces = recorded(max_bytes=100)
    record(pieces, 4)  # 256 bytes
    repeat(pieces, 4, times=5)
    assert (pieces.recordings, pieces.replays, pieces.held_bytes) == (0, 0, 0)
    record(pieces, 1)  # 64 bytes: the same piece, small enough
    repeat(pieces, 1)
    assert (pieces.recordings, pieces.replays) == (1, 1)


def test_a_recording_that_took_more_memory_than_there_is_is_dropped() -> None:
    pieces = GraphPieceRunner(EchoRecorder(pool_bytes=900), max_bytes=1000)
    record(pieces, 4)  # 256 bytes of buffers
    repeat(pieces, 4, times=3)
    assert (pieces.recordings, pieces.replays, pieces.held_bytes) == (0, 0, 0)
    assert list(pieces.refusals.values()) == ["its own memory is 900 bytes"]
    record(pieces, 1)  # 64 bytes
    repeat(pieces, 1)
    assert (pieces.recordings, pieces.replays, pieces.held_bytes) == (1, 1, 964)


def test_what_cannot_be_recorded_is_called_and_the_reason_kept() -> None:
    pieces = recorded(refusal="it cannot be captured: a copy to the host")
    record(pieces, 4)
    repeat(pieces, 4, times=2)
    assert list(pieces.refusals.values()) == ["it cannot be captured: a copy to the host"]
    assert (pieces.recordings, pieces.replays, pieces.held_bytes) == (0, 0, 0)


def test_after_forgetting_new_weights_are_read() -> None:
    pieces, layer = recorded(), nn.Linear(HIDDEN, HIDDEN)
    with torch.inference_mode():
        with pieces.recording():
            pieces.run("layer", lambda x: (layer(x),), tokens(4))
        other = nn.Linear(HIDDEN, HIDDEN)
        pieces.forget()
        assert (pieces.recordings, pieces.held_bytes) == (0, 0)
        with pieces.recording():
            pieces.run("layer", lambda x: (other(x),), tokens(4))
        (made,) = pieces.run("layer", lambda x: (other(x),), tokens(4))
        assert torch.equal(made, other(tokens(4))) and pieces.replays == 1


@pytest.mark.parametrize(("max_bytes", "max_recordings"), [(-1, 1), (0, 0)])
def test_bounds_that_bound_nothing_are_refused(max_bytes: int, max_recordings: int) -> None:
    with pytest.raises(ValueError, match="no bounds"):
        GraphPieceRunner(EchoRecorder(), max_bytes, max_recordings)
