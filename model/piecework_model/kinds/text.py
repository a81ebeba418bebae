"""Kind `text` for the engine: a conversation becomes a prompt, a template becomes pinned positions.

The fixed parts are written literally: never as a control token, and without a space that they do
not have. Holes that follow each other are one hole. Behind the form, the last canvas is pinned to
the end-of-text id that ends a message of the prompt.
"""

from __future__ import annotations

from piecework_model import limits
from piecework_model.errors import PromptError
from piecework_model.requests import HOLE, EncodedContent
from piecework_model.text.chat import HasTokenizer, codec_of, encode_conversation
from piecework_model.text.literal import literal_ids
from piecework_model.text.tokens import TextCodec
from piecework_protocol.kinds.text import Fixed, TemplatePart, TextContent


def encode(
    source: HasTokenizer | TextCodec,
    content: TextContent,
    canvas_size: int,
    context: int,
    most: int | None = None,
) -> EncodedContent:
    """Encode a text job. The arguments are those of `kinds.encode`.

    Raises:
        PromptError: The chat template or the vocabulary cannot carry it, or the template has more
            than `context` positions.
    """
    most = context if most is None else most
    prompt = encode_conversation(source, content.conversation, most=most, context=context)
    if not content.template or len(prompt.ids) > most:
        return EncodedContent(prompt.ids, images=prompt.images)
    codec = codec_of(source)
    form = _form(codec, content.template, context)
    template = padded(form, canvas_size, end_id(codec, prompt.ids))
    return EncodedContent(prompt.ids, template, positions=len(form), images=prompt.images)


def padded(form: tuple[int, ...], canvas_size: int, end: int) -> tuple[int, ...]:
    """Fill the last canvas with the end-of-text id `end`."""
    return (*form, *[end] * (-len(form) % canvas_size))


def end_id(codec: TextCodec, prompt_ids: tuple[int, ...]) -> int:
    """Choose the end-of-text id to pin: the one that ends the prompt's first message.

    So it is what the model learnt to end a message with. A chat template that uses none gives the
    least.
    """
    return next((token for token in prompt_ids if token in codec.eos_ids), min(codec.eos_ids))


def _form(codec: TextCodec, template: tuple[TemplatePart, ...], most: int) -> tuple[int, ...]:
    """Encode the parts, one entry a position.

    Raises:
        PromptError: There are more than `most`, or the vocabulary cannot write a fixed part.
    """
    form: list[int] = []
    for part in template:
        if not isinstance(part, Fixed):
            _check_room(part.tokens, most - len(form))
            form += [HOLE] * part.tokens
            continue
        # A token has at least one byte and at most so many.
        _check_room(-(-len(part.text.encode()) // limits.MAX_TOKEN_BYTES), most - len(form))
        form += literal_ids(codec, part.text, start=not form, most=most - len(form))
    return tuple(form)


def _check_room(positions: int, room: int) -> None:
    if positions > room:
        raise PromptError("the template has more positions than the context")
