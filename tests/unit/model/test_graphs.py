"""Recorded pieces of a step: buckets, buffers, bounds, and the same bits as without recordings.

The recorder replays by calling (tests/support/recorder.py); no graph was captured.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.graphs import RECORD_AT, Pieces, PlainPieces, RecordedPieces
from model.loading import LoadedModel
from tests.support.recorder import EchoRecorder

HIDDEN = 8
AMPLE_BYTES = 10**9


def double(x: Tensor) -> tuple[Tensor, ...]:
    return (2 * x,)


def recorded(max_recordings: int = 64, max_bytes: int = AMPLE_BYTES, refusal: str = "") -> RecordedPieces:
    return RecordedPieces(EchoRecorder(refusal), max_bytes, max_recordings)


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn((count, HIDDEN), generator=torch.Generator().manual_seed(seed))


@dataclass
class Stack:
    """Layers of real modules, cut as a step would be: a piece is what stands between two attentions. It hands
    on the residual and the next queries together.
    """

    layers: list[nn.Module]

    def run(self, pieces: Pieces, hidden: Tensor, canvas: int) -> Tensor:
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
@given(st.lists(st.integers(1, 5), min_size=1, max_size=25), st.integers(1, 12))
def test_any_sequence_of_row_counts_gives_the_bits_of_plain_calls(rows: list[int], room: int) -> None:
    """With room for fewer recordings than there are buckets, pieces are called, or recorded anew."""
    canvas = 4
    with torch.inference_mode():
        stack = Stack([nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])
        pieces = recorded(max_recordings=room)
        for step, count in enumerate(rows):
            hidden = tokens(count * canvas, seed=step)
            expected = stack.run(PlainPieces(), hidden, canvas)
            assert torch.equal(stack.run(pieces, hidden, canvas), expected)
            assert pieces.recordings <= room


def test_the_feed_forward_of_the_bundled_model_replays_to_the_same_bits(bundled: LoadedModel) -> None:
    layer = bundled.model.model.decoder.layers[0]

    def dense(hidden: Tensor) -> tuple[Tensor, ...]:
        normed = layer.pre_feedforward_layernorm(hidden)
        return (layer.post_feedforward_layernorm_1(layer.mlp(normed)),)

    pieces = recorded()
    width = bundled.model.config.text_config.hidden_size
    with torch.inference_mode():
        for seed in range(RECORD_AT + 2):
            hidden = torch.randn((64, width), generator=torch.Generator().manual_seed(seed))
            assert torch.equal(pieces.run("dense", dense, hidden)[0], dense(hidden)[0])
    assert (pieces.recordings, pieces.replays) == (1, 3)


def test_outputs_are_gone_after_the_next_run_of_any_piece() -> None:
    """The test's recorder sees to it, as shared scratch memory would."""
    pieces = recorded()
    for _ in range(RECORD_AT):
        (first,) = pieces.run("first", double, tokens(4))
        pieces.run("second", double, first)
    assert first.isnan().all()


def test_a_piece_is_recorded_when_its_shape_comes_again_and_not_before() -> None:
    pieces = recorded()
    for count in (1, 2, 3, 4, 5, 6):  # as passes that prefill: never the same twice
        pieces.run("double", double, tokens(count))
    assert pieces.recordings == 0
    for repeat in range(1, RECORD_AT):
        pieces.run("double", double, tokens(4))
        assert pieces.recordings == (1 if repeat + 1 >= RECORD_AT else 0)


def test_replays_read_and_write_the_same_memory() -> None:
    pieces = recorded()
    places = {pieces.run("double", double, tokens(4, seed))[0].data_ptr() for seed in range(RECORD_AT + 5)}
    kept = pieces.run("double", double, tokens(4))[0]
    assert kept.data_ptr() in places
    assert len(places) <= RECORD_AT  # the calls before, and one place from then on
    pieces.run("double", double, torch.ones(4, HIDDEN))
    assert kept.tolist() == [[2.0] * HIDDEN] * 4


def test_pieces_names_shapes_and_types_have_buckets_of_their_own() -> None:
    pieces = recorded()
    for _ in range(RECORD_AT):
        pieces.run("double", double, tokens(4))
        pieces.run("double", double, tokens(5))
        pieces.run("double", double, tokens(4).to(torch.bfloat16))
        pieces.run("other", double, tokens(4))
    assert pieces.recordings == 4


def test_the_recording_unused_for_longest_goes_first() -> None:
    pieces = recorded(max_recordings=2)
    for count in (1, 2):
        for _ in range(RECORD_AT):
            pieces.run("double", double, tokens(count))
    pieces.run("double", double, tokens(1))  # now 2 is the older one
    for _ in range(RECORD_AT):
        pieces.run("double", double, tokens(3))
    replays = pieces.replays
    pieces.run("double", double, tokens(1))
    assert pieces.replays == replays + 1
    pieces.run("double", double, tokens(2))  # gone: a call
    assert (pieces.replays, pieces.recordings) == (replays + 1, 2)


def test_inputs_and_outputs_of_all_recordings_stay_within_their_bytes() -> None:
    one = 2 * 4 * HIDDEN * 4  # input and output of 4 tokens in float32
    pieces = recorded(max_bytes=2 * one)
    for name in ("a", "b", "c"):
        for _ in range(RECORD_AT):
            pieces.run(name, double, tokens(4))
        assert pieces.held_bytes <= 2 * one
    assert (pieces.recordings, pieces.held_bytes) == (2, 2 * one)


def test_what_alone_is_larger_than_all_may_be_is_called_and_the_reason_kept() -> None:
    pieces = recorded(max_bytes=100)
    for _ in range(RECORD_AT + 1):
        assert torch.equal(pieces.run("double", double, tokens(4))[0], 2 * tokens(4))
    for _ in range(RECORD_AT):
        pieces.run("double", double, tokens(1))  # 64 bytes: the same piece, small enough
    assert list(pieces.refusals.values()) == ["needs 256 bytes, all recordings may hold 100"]
    assert pieces.recordings == 1


def test_what_cannot_be_recorded_is_called_and_the_reason_kept() -> None:
    pieces = recorded(refusal="it cannot be captured: a copy to the host")
    for _ in range(RECORD_AT + 2):
        assert torch.equal(pieces.run("double", double, tokens(4))[0], 2 * tokens(4))
    assert list(pieces.refusals.values()) == ["it cannot be captured: a copy to the host"]
    assert (pieces.recordings, pieces.replays) == (0, 0)


def test_after_forgetting_new_weights_are_read() -> None:
    pieces, layer = recorded(), nn.Linear(HIDDEN, HIDDEN)
    with torch.inference_mode():
        for _ in range(RECORD_AT):
            pieces.run("layer", lambda x: (layer(x),), tokens(4))
        other = nn.Linear(HIDDEN, HIDDEN)
        pieces.forget()
        assert (pieces.recordings, pieces.held_bytes) == (0, 0)
        for _ in range(RECORD_AT):
            (made,) = pieces.run("layer", lambda x: (other(x),), tokens(4))
            assert torch.equal(made, other(tokens(4)))


@pytest.mark.parametrize(("max_bytes", "max_recordings"), [(-1, 1), (0, 0)])
def test_bounds_that_bound_nothing_are_refused(max_bytes: int, max_recordings: int) -> None:
    with pytest.raises(ValueError, match="no bounds"):
        RecordedPieces(EchoRecorder(), max_bytes, max_recordings)
