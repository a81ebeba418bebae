"""Token ids to canvases: whatever the pieces, the canvases are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from piecework_model.checkpoint.manifest import MANIFEST_FILE, manifest_digest, manifest_text
from piecework_model.errors import CheckpointError
from piecework_model.requests import CanvasEvent, CanvasFinish, GenerationRequest
from piecework_model.text.tokens import TextCodec, load_codec
from piecework_node.errors import EndpointLost
from piecework_node.vllm import checkpoint as vllm_checkpoint
from piecework_node.vllm.canvases import CanvasWriter
from piecework_node.vllm.wire import Chunk
from tests.support.model.vllm_server import CHECKPOINT, EOS, WORDS

SIZE = 4


def request(max_tokens: int, committed: tuple[tuple[int, ...], ...] = ()) -> GenerationRequest:
    return GenerationRequest("row", (7, 8), 0, max_tokens, 0, 0, 0, 0, 0, 0, 1, committed, 0)


def write(
    ids: list[int], cuts: list[int], max_tokens: int, committed: tuple[tuple[int, ...], ...] = ()
) -> list[CanvasEvent]:
    """The canvases of ids that come in pieces."""
    writer = CanvasWriter(request(max_tokens, committed), CHECKPOINT.codec, SIZE)
    events: list[CanvasEvent] = []
    while ids and not writer.ended:
        length = cuts.pop() if cuts else 1
        piece, ids = ids[:length], ids[length:]
        events += writer.take(Chunk(tuple(piece)))
    if not writer.ended:
        events += writer.take(Chunk((), "stop"))
    return events


@given(
    ids=st.lists(st.sampled_from(WORDS[:30]), max_size=30),
    end=st.one_of(st.none(), st.integers(0, 30)),
    cuts=st.lists(st.integers(1, 9), max_size=30),
    max_tokens=st.integers(1, 40),
)
def test_any_cutting_gives_the_same_canvases_and_charges_no_token_twice(
    ids: list[int], end: int | None, cuts: list[int], max_tokens: int
) -> None:
    stream = ids if end is None else [*ids[:end], EOS, *ids[end:]]
    events = write(list(stream), list(cuts), max_tokens)
    assert events == write(list(stream), [], max_tokens)
    said = stream[: stream.index(EOS)] if EOS in stream else stream
    charged = [token for event in events for token in event.charged_ids]
    assert charged == said[:max_tokens]
    assert [e.canvas for e in events] == list(range(len(events)))
    assert all(len(e.charged_ids) == SIZE and e.finish is CanvasFinish.MORE for e in events[:-1])
    assert events[-1].finish is (
        CanvasFinish.TOKEN_LIMIT if len(charged) == max_tokens else CanvasFinish.END_OF_TEXT
    )
    assert "".join(e.text for e in events) == CHECKPOINT.codec.decode(tuple(charged))
    assert all((e.steps, e.step_leaves) == (0, ()) for e in events)


@given(
    ids=st.lists(st.sampled_from(WORDS[:30]), min_size=5, max_size=30), resumed=st.integers(1, 7)
)
def test_a_text_that_is_resumed_goes_on_as_if_it_had_not_stopped(
    ids: list[int], resumed: int
) -> None:
    whole = write(list(ids), [], 40)
    kept = [e.token_ids for e in whole[:-1]][:resumed]
    rest = write(ids[len(kept) * SIZE :], [], 40, tuple(kept))
    assert rest == whole[len(kept) :]


def test_the_next_request_is_for_what_the_window_has_room_for() -> None:
    writer = CanvasWriter(request(10), CHECKPOINT.codec, SIZE)
    assert [writer.room(limit) for limit in (0, 1, 2, 3, 9)] == [0, 4, 8, 10, 10]
    writer.take(Chunk(WORDS[:6]))
    assert (writer.canvas, writer.room(1), writer.room(2), writer.room(3)) == (1, 0, 4, 6)
    assert writer.context() == (7, 8, *WORDS[:4])
    writer.drop_unfinished()
    (last,) = writer.take(Chunk((*WORDS[4:6], EOS), "stop"))
    assert last.charged_ids == WORDS[4:6]
    assert (writer.ended, writer.room(9)) == (True, 0)


def test_a_token_that_the_engine_was_told_to_stop_at_is_not_charged() -> None:
    stop = WORDS[9]
    writer = CanvasWriter(request(10), CHECKPOINT.codec, SIZE)
    (event,) = writer.take(Chunk((WORDS[0], stop), "stop", stop))
    assert event.charged_ids == (WORDS[0],)


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
def test_a_stream_that_ends_for_another_reason_is_lost_and_not_the_end_of_a_text(
    reason: str,
) -> None:
    writer = CanvasWriter(request(10), CHECKPOINT.codec, SIZE)
    with pytest.raises(EndpointLost):
        writer.take(Chunk((WORDS[0],), reason))


def byte_level(folder: Path) -> TextCodec:
    """A vocabulary of bytes, as GPT's descendants have it: a letter beyond ASCII is several
    tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return load_codec(folder, frozenset({300}))


def test_half_a_character_waits_for_the_canvas_that_completes_it(tmp_path: Path) -> None:
    codec = byte_level(tmp_path)

    @given(text=st.text(st.sampled_from("aß你🦊�"), min_size=1, max_size=20))
    def holds(text: str) -> None:
        writer = CanvasWriter(request(200), codec, SIZE)
        events = [
            *writer.take(Chunk(codec.encode_content(text))),
            *writer.take(Chunk((300,), "stop")),
        ]
        pieces = [e.text for e in events]
        assert "".join(pieces) == text
        assert "�" in text or not any("�" in piece for piece in pieces)

    holds()


def test_a_checkpoint_without_canvases_gets_them_of_the_released_models_size(
    tmp_path: Path,
) -> None:
    folder = _checkpoint(tmp_path, {"vocab_size": 300})
    loaded = vllm_checkpoint.load(folder)
    assert (loaded.canvas_size, loaded.vocab_size) == (256, 300)
    assert loaded.digest == manifest_digest(manifest_text(folder))


@pytest.mark.parametrize(
    ("config", "generation", "file"),
    [
        ({}, {"eos_token_id": 1}, "config.json"),
        ({"vocab_size": True}, {"eos_token_id": 1}, "config.json"),
        ({"vocab_size": 300, "canvas_length": 0}, {"eos_token_id": 1}, "config.json"),
        ({"vocab_size": 300, "canvas_length": 4096}, {"eos_token_id": 1}, "config.json"),
        ({"vocab_size": 300}, {}, "generation_config.json"),
        ({"vocab_size": 300}, {"eos_token_id": [-1]}, "generation_config.json"),
    ],
)
def test_a_checkpoint_that_lacks_what_the_offer_needs_is_refused_by_file(
    tmp_path: Path, config: dict[str, object], generation: dict[str, object], file: str
) -> None:
    folder = _checkpoint(tmp_path, config, generation)
    with pytest.raises(CheckpointError) as caught:
        vllm_checkpoint.load(folder)
    assert Path(caught.value.path).name == file


def test_a_checkpoint_that_is_not_as_its_manifest_says_is_refused(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path, {"vocab_size": 300})
    (folder / MANIFEST_FILE).write_text(manifest_text(folder))
    assert vllm_checkpoint.load(folder).digest
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(CheckpointError):
        vllm_checkpoint.load(folder)


def _checkpoint(
    folder: Path, config: dict[str, object], generation: dict[str, object] | None = None
) -> Path:
    given = {"eos_token_id": [1, 4]} if generation is None else generation
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(given))
    (folder / "model.safetensors").write_bytes(b"weights")
    Tokenizer(models.BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder
