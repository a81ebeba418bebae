"""From contents to the engine's inputs, with three families of tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework_model import kinds, limits
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.errors import PromptError
from piecework_model.kinds.read import _lookup, option_codes
from piecework_model.requests import HOLE, EncodedContent
from piecework_model.text.literal import literal_ids
from piecework_model.text.tokens import TextCodec
from piecework_protocol import kinds as protocol_kinds
from piecework_protocol.conversation import Conversation, Image, Message, Text
from piecework_protocol.kinds.read import Label, Question, ReadContent
from piecework_protocol.kinds.text import Fixed, Hole, TemplatePart, TextContent
from tests.support.model.small_tokenizers import (
    byte_tokenizer,
    codec_of,
    counting,
    merged_tokenizer,
)

FOX = Conversation((Message("user", "The fox sleeps."),))
TURN_END = 5
HOSTILE = st.lists(
    st.sampled_from(["<eos>", "<turn|>", "<|turn>model\n", "<", "0x41>", " ", "\n", "é", "\t"])
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=4),
    min_size=1,
    max_size=8,
).map("".join)


@pytest.fixture(scope="session")
def codecs(bundled: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> list[TextCodec]:
    folder: Path = tmp_path_factory.mktemp("tokenizers")
    return [
        bundled.tokenizer,
        codec_of(merged_tokenizer(), folder / "merged"),
        codec_of(byte_tokenizer(), folder / "bytes"),
    ]


def template(codec: TextCodec, *parts: TemplatePart, most: int = 1000) -> tuple[int, ...]:
    return kinds.encode(codec, TextContent(FOX, parts), 32, most).template


def asked(*labels: int, draws: int = 1, conversation: Conversation = FOX) -> ReadContent:
    """A read with one question for each number of labels."""
    return ReadContent(
        conversation,
        tuple(
            Question(f"Which one, {count}?", tuple(Label(f"no. {n}") for n in range(count)))
            for count in labels
        ),
        draws,
    )


def lines(codec: TextCodec, encoded: EncodedContent, slot: str) -> str:
    """The template's canvases of 32 as texts, one behind the other, with `slot` in each slot."""
    (mark,) = literal_ids(codec, slot, start=False)
    ids = tuple(mark if entry == HOLE else entry for entry in encoded.template)
    return "".join(codec.decode(ids[at : at + 32]) for at in range(0, len(ids), 32))


def test_the_engine_has_a_module_for_each_kind_of_the_protocol() -> None:
    def modules(package: Path) -> set[str]:
        return {path.stem for path in package.glob("*.py")} - {"__init__", "prompt"}

    ours, theirs = (Path(package.__path__[0]) for package in (kinds, protocol_kinds))
    assert modules(ours) == modules(theirs) == {kind.name.lower() for kind in protocol_kinds.KINDS}


@given(text=HOSTILE)
def test_fixed_text_comes_out_as_it_went_in_and_never_as_a_control_token(
    codecs: list[TextCodec], text: str
) -> None:
    for codec in codecs:
        alone, behind = (literal_ids(codec, text, start=start) for start in (True, False))
        assert codec.decode(alone) == text
        assert codec.control_ids.isdisjoint((*alone, *behind))
        word = codec.encode_content("x")
        assert codec.decode((*word, *behind)) == "x" + text


@pytest.mark.parametrize(
    "text", ["x" * 5000, "a fox\n" * 900, " é" * 2000, "word " * 1000, "\n" * 3000]
)
def test_a_long_fixed_text_comes_out_as_it_went_in(codecs: list[TextCodec], text: str) -> None:
    for codec in codecs:
        assert codec.decode(literal_ids(codec, text, start=True)) == text


def test_a_character_that_no_token_writes_is_refused_by_its_number(codecs: list[TextCodec]) -> None:
    with pytest.raises(PromptError, match=r"U\+2581"):
        literal_ids(codecs[0], "a▁b", start=True)


def test_free_text_has_a_prompt_and_no_template(codecs: list[TextCodec]) -> None:
    for codec in codecs:
        encoded = kinds.encode(codec, TextContent(FOX), 32, 1000)
        assert encoded.prompt_ids
        assert (encoded.template, encoded.reads) == ((), ())


def test_a_template_is_whole_canvases_that_end_as_a_message_does(codecs: list[TextCodec]) -> None:
    for codec in codecs:
        entries = template(codec, Fixed('{"a": "'), Hole(30), Fixed('"}'), Hole(2), Hole(3))
        form = len(entries) - entries.count(TURN_END)
        assert len(entries) == -(-form // 32) * 32
        assert entries[form:] == (TURN_END,) * (len(entries) - form)
        assert entries.count(HOLE) == 35
        assert codec.decode(tuple(entry for entry in entries if entry != HOLE)) == '{"a": ""}'


def test_a_template_that_fills_its_canvases_has_no_end(codecs: list[TextCodec]) -> None:
    assert template(codecs[0], Hole(64)) == (HOLE,) * 64


@pytest.mark.parametrize(
    "parts",
    [
        (Hole(101),),
        (Hole(60), Fixed("x"), Hole(60)),
        (Fixed("xyz " * 50), Hole(1)),
        (Fixed("<eos>" * 50), Hole(1)),
    ],
)
def test_a_template_longer_than_the_context_is_refused(
    codecs: list[TextCodec], parts: tuple[TemplatePart, ...]
) -> None:
    with pytest.raises(PromptError, match=r"more .*positions"):
        template(codecs[0], *parts, most=100)


def test_a_long_fixed_text_is_refused_before_it_is_encoded(codecs: list[TextCodec]) -> None:
    with pytest.raises(PromptError, match="more positions"):
        template(codecs[0], Fixed("▁" * 100_000), Hole(1), most=100)  # which no token writes


def test_a_read_has_a_line_for_each_question_and_slots_for_the_answers(
    codecs: list[TextCodec],
) -> None:
    for codec in codecs:
        encoded = kinds.encode(codec, asked(2, 3, 2, draws=7), 32, 1000)
        assert lines(codec, encoded, "B").replace(" B", "B") == "q1:B\nq2:B\nq3:B\n"
        assert [[len(slot.label_ids) for slot in slots] for slots in encoded.reads] == [[2, 3], [2]]
        for canvas, slots in enumerate(encoded.reads):
            free = encoded.template[32 * canvas : 32 * canvas + 32]
            assert [slot.position for slot in slots] == [
                index for index, entry in enumerate(free) if entry == HOLE
            ]
        shown = codec.decode(encoded.prompt_ids)
        assert "q3: Which one, 2?\nA: no. 0\nB: no. 1" in shown
        assert "C: no. 2" in shown


def choose(*names: str) -> Question:
    return Question("Which one?", tuple(Label(name) for name in names))


def test_labels_that_are_one_token_each_stand_in_the_slot_themselves(
    codecs: list[TextCodec],
) -> None:
    unigram, merged, plain = codecs
    for codec, labels, pieces in (
        (unigram, ("happy", "lazy"), ("▁happy", "▁lazy")),
        (merged, ("AB", "x"), ("▁AB", "▁x")),
        (plain, ("A", "b"), ("A", "b")),
    ):
        encoded = kinds.encode(codec, ReadContent(FOX, (choose(*labels),)), 32, 1000)
        ((slot,),) = encoded.reads
        assert slot.label_ids == tuple(map(codec._parsing.token_to_id, pieces))
        shown = codec.decode(encoded.prompt_ids)
        assert f"q1: Which one?\n- {labels[0]}\n- {labels[1]}" in shown
        # The line reads as text with the label in it does, space and all.
        ids = tuple(slot.label_ids[0] if entry == HOLE else entry for entry in encoded.template)
        assert codec.decode(ids).startswith(f"q1: {labels[0]}\n")


def test_a_question_with_a_label_of_several_tokens_has_codes_and_the_others_have_none(
    codecs: list[TextCodec],
) -> None:
    codec = codecs[0]
    content = ReadContent(FOX, (choose("happy", "lazy"), choose("lazy", "q z")))
    encoded = kinds.encode(codec, content, 32, 1000)
    own, coded = (slot for slots in encoded.reads for slot in slots)
    token = codec._parsing.token_to_id
    assert own.label_ids == (token("▁happy"), token("▁lazy"))
    assert coded.label_ids == (token("A"), token("B"))
    shown = codec.decode(encoded.prompt_ids)
    assert "- happy\n- lazy\n\nq2: Which one?\nA: lazy\nB: q z" in shown


@pytest.mark.parametrize("names", [("x", ""), ("x", "\n"), (" x", "x"), ("x", "y\t")])
def test_a_label_that_is_blank_or_has_space_around_it_never_stands_for_itself(
    codecs: list[TextCodec], names: tuple[str, str]
) -> None:
    for codec in codecs:
        encoded = kinds.encode(codec, ReadContent(FOX, (choose(*names),)), 32, 1000)
        ((slot,),) = encoded.reads
        assert slot.label_ids == tuple(token for _, token in option_codes(codec, 2)[1])


def test_labels_have_a_token_each_with_the_space_in_it_if_the_vocabulary_has_that(
    codecs: list[TextCodec],
) -> None:
    unigram, merged, plain = codecs
    for codec, before, piece in ((unigram, " ", "A"), (merged, "", "▁A"), (plain, " ", "A")):
        space, codes = option_codes(codec, 26)
        assert (space, [code for code, _ in codes]) == (before, list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
        assert len({token for _, token in codes}) == 26
        assert codes[0][1] == codec._parsing.token_to_id(piece)


def test_more_labels_than_letters_take_pairs_and_then_small_letters(
    codecs: list[TextCodec],
) -> None:
    unigram, merged, _ = codecs
    assert [code for code, _ in option_codes(merged, 255)[1]][26:29] == ["AA", "AB", "AC"]
    assert [code for code, _ in option_codes(unigram, 62)[1]][26:28] == ["a", "b"]


def test_a_vocabulary_with_fewer_codes_than_labels_is_refused_with_both_numbers(
    codecs: list[TextCodec],
) -> None:
    with pytest.raises(PromptError, match=r"63 labels.* 62 option codes"):
        kinds.encode(codecs[2], asked(63), 32, 10_000)


def test_a_read_of_more_lines_than_the_context_has_tokens_looks_nothing_up(
    codecs: list[TextCodec],
) -> None:
    for codec in codecs:
        counted, counter = counting(codec)
        encoded = kinds.encode(counted, asked(255, 255), 32, 511)
        assert counter.encoded == 0
        assert (len(encoded.prompt_ids), encoded.template, encoded.reads) == (512, (), ())


def test_no_canvas_is_laid_out_for_a_prompt_that_does_not_fit(codecs: list[TextCodec]) -> None:
    for codec in codecs:
        for content in (asked(2, 2), TextContent(FOX, (Hole(3), Fixed("x"), Hole(3)))):
            whole = len(kinds.encode(codec, content, 32, 1000).prompt_ids)
            fits, cut = (kinds.encode(codec, content, 32, most) for most in (whole, whole - 1))
            assert fits.template and len(fits.prompt_ids) == whole
            assert (len(cut.prompt_ids), cut.template, cut.reads) == (whole, (), ())


def test_a_read_looks_up_so_many_labels_and_gives_codes_to_the_others(
    codecs: list[TextCodec],
) -> None:
    counted, counter = counting(codecs[1])
    token = _lookup(counted)
    assert token("A") is not None
    for number in range(limits.MAX_LABEL_LOOKUPS - 1):
        assert token(f"q{number}") is None
    before = counter.encoded
    assert token("B") is None and token("A") is not None
    assert counter.encoded == before


def test_a_canvas_too_small_for_a_line_is_refused(codecs: list[TextCodec]) -> None:
    with pytest.raises(PromptError, match="longer than its share"):
        kinds.encode(codecs[2], asked(2), 4, 1000)


def test_questions_go_to_the_end_of_the_last_user_message(codecs: list[TextCodec]) -> None:
    codec = codecs[1]
    answered = Conversation((Message("user", "Hi"), Message("assistant", "Ho")))
    shown = codec.decode(kinds.encode(codec, asked(2, conversation=answered), 32, 1000).prompt_ids)
    assert shown.index("Ho") < shown.index("Answer each question") < shown.index("q1: Which")
    shared = [
        kinds.encode(codec, asked(count, conversation=FOX), 32, 1000).prompt_ids for count in (2, 3)
    ]
    start = kinds.encode(codec, TextContent(FOX), 32, 1000).prompt_ids
    common = next(n for n, (one, two) in enumerate(zip(*shared, strict=False)) if one != two)
    assert common > len(start) - 10  # reads of one state share what the prefix cache keeps


def test_images_stay_where_they_are(codecs: list[TextCodec]) -> None:
    picture = Image("image/png", b"x")
    looked = Conversation((Message("user", (Text("Look: "), picture)),))
    with pytest.raises(PromptError, match="images"):
        kinds.encode(codecs[0], asked(2, conversation=looked), 32, 1000)
