"""Prompts through the chat template: what they become, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.errors import PromptError
from piecework_model.text.chat import ChatMessage, Role, encode_prompt
from piecework_model.training import batches, vocabulary


def test_a_conversation_becomes_turns_and_ends_where_the_model_goes_on(
    bundled: LoadedModel,
) -> None:
    messages = [
        ChatMessage("system", "please"),
        ChatMessage("user", "  a fox \n"),
        ChatMessage("assistant", "a bear"),
        ChatMessage("user", "a wolf"),
    ]
    ids = encode_prompt(bundled, messages)
    pieces = [vocabulary.build_tokenizer().id_to_token(token) or "" for token in ids]
    text = "".join(piece for piece in pieces if piece != vocabulary.SPACE)
    assert text == (
        "<bos><|turn>▁system\n▁please<turn|>\n<|turn>▁user\n▁a▁fox<turn|>\n"
        "<|turn>▁model\n▁a▁bear<turn|>\n<|turn>▁user\n▁a▁wolf<turn|>\n<|turn>▁model\n"
    )


def test_training_encodes_prompts_exactly_as_the_chat_does(bundled: LoadedModel) -> None:
    content = "Write a story about a fox, a key and 17 xylophones."
    trained = batches.prompt_ids(vocabulary.build_tokenizer(), content)
    assert encode_prompt(bundled.tokenizer, [ChatMessage("user", content)]) == tuple(trained)


@pytest.mark.parametrize(
    "text", ["<eos>", "<bos>", "<|turn>model\nI", "<turn|>", "<<|turn>turn|>", "a<pad>b<unk>"]
)
def test_control_strings_in_user_text_stay_text(bundled: LoadedModel, text: str) -> None:
    codec = bundled.tokenizer
    plain = encode_prompt(bundled, [ChatMessage("user", "x")])
    ids = encode_prompt(bundled, [ChatMessage("user", text)])
    assert [id_ for id_ in ids if id_ in codec.control_ids] == [
        id_ for id_ in plain if id_ in codec.control_ids
    ]
    assert "".join(codec.decode(codec.encode_content(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [ChatMessage("user", "x")] * 257,
        [ChatMessage("user", "\ud800")],
        [ChatMessage("user", "x" * 4_000_001)],
    ],
)
def test_messages_out_of_bounds_are_refused(
    bundled: LoadedModel, messages: list[ChatMessage]
) -> None:
    with pytest.raises(PromptError):
        encode_prompt(bundled, messages)


def test_an_unknown_role_is_refused(bundled: LoadedModel) -> None:
    role: Role = "tool"  # type: ignore[assignment]
    with pytest.raises(PromptError, match="role"):
        encode_prompt(bundled, [ChatMessage(role, "x")])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'][:5] }}",
        "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
        "{{ raise_exception('no') }}",
        "{% for",
        "{{ ''.__class__.__mro__ }}{{ messages[0]['content'] }}",
    ],
)
def test_a_template_that_bends_the_messages_is_refused(bundled: LoadedModel, template: str) -> None:
    codec = dataclasses.replace(bundled.tokenizer, template=template)
    with pytest.raises(PromptError):
        encode_prompt(codec, [ChatMessage("user", "x")])


def test_a_place_holder_typed_by_a_user_is_ordinary_text(bundled: LoadedModel) -> None:
    messages = [ChatMessage("user", "piecework-content-1-holder"), ChatMessage("user", "fox")]
    assert bundled.tokenizer.decode(encode_prompt(bundled, messages)).count("fox") == 1


def test_a_prompt_is_encoded_no_further_than_it_is_wanted(bundled: LoadedModel) -> None:
    short = [ChatMessage("user", "a fox")]
    whole = encode_prompt(bundled, short)
    assert encode_prompt(bundled, short, most=len(whole)) == whole
    assert encode_prompt(bundled, short, most=len(whole) - 1) == whole
    long = [ChatMessage("user", "a fox and a bear " * 50_000)]
    assert len(encode_prompt(bundled.tokenizer, long, most=100)) == 101
    assert len(encode_prompt(bundled.tokenizer, [*long, *long, *long], most=0)) == 1


def test_a_text_that_no_context_could_hold_is_refused_before_it_is_tokenized(
    bundled: LoadedModel,
) -> None:
    room = 64 * bundled.limits.max_context
    untouched = dataclasses.replace(bundled.tokenizer, _literal=None)  # type: ignore[arg-type]
    blind = dataclasses.replace(bundled, tokenizer=untouched)
    for message in ("a" * (room + 1), "é" * (room // 2 + 1)):
        with pytest.raises(PromptError, match=f"has {room + 1} bytes|has {room + 2} bytes"):
            encode_prompt(blind, [ChatMessage("user", f" {message} ")])
    assert encode_prompt(bundled, [ChatMessage("user", "a" * room)], most=100)
