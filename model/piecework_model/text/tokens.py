"""Text in and out of token ids, with the checkpoint's tokenizer.json and chat template.

Nothing of a checkpoint is executed. `tokenizers` reads tokenizer.json directly, so no tokenizer
class is looked up by name. No torch.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from piecework_model import files
from piecework_model.errors import CheckpointError

GRAMMAR_TOKENS = (
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
)
"""What structures a text of Gemma 4's family. They are control tokens however they are declared."""
PROBES = ((6, 1.25), (16, 2.0))
"""Starts of a long text: characters for each id that is wanted, and how many ids for each show that
the text has too many. Text has about four characters a token.
"""
PROBE_MARGIN = 64
"""Ids that a start has to have beyond that. A cut changes a few at its place."""
LONG_TEXT_CHARS = 1024
"""From here on a text takes a third of a millisecond and more. Then others may run meanwhile."""
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class TextCodec:
    """The tokenizer of one checkpoint.

    eos_ids: the ids that end a text.
    template: the Jinja source of the chat template.
    named_tokens: bos_token, eos_token and others that the template may use.
    control_ids: the ids of all special tokens, and of those of the grammar of turns and tools.
    """

    eos_ids: frozenset[int]
    template: str
    named_tokens: dict[str, str]
    control_ids: frozenset[int]
    _parsing: Tokenizer = field(repr=False)  # turns control strings into control ids
    _literal: Tokenizer = field(repr=False)  # treats them as plain text
    _control_text: re.Pattern[str] = field(repr=False)
    _leads: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    def control_id(self, token: str) -> int | None:
        """Return the id of a control token, or None if the checkpoint has no such."""
        id_ = self._parsing.token_to_id(token)
        return id_ if id_ in self.control_ids else None

    @property
    def vocab_size(self) -> int:
        """How many ids have a piece."""
        return int(self._parsing.get_vocab_size())

    def encode_template(self, text: str) -> tuple[int, ...]:
        """Encode text that the checkpoint's own template wrote. Control strings become control
        ids.
        """
        return tuple(_ids(self._parsing, text))

    def encode_content(self, text: str, *, most: int | None = None) -> tuple[int, ...]:
        """Encode text that a person typed. It never gives a control id.

        most: more ids are not needed. If the start of a long text gives clearly more (`PROBES`),
            the result is `most` + 1 of them, and the rest of the text is not read.
        """
        if most is not None:
            for characters, ids in PROBES:
                if len(text) <= characters * (most + 1):
                    break
                start = self._encode_literal(text[: characters * (most + 1)])
                if len(start) > ids * (most + 1) + PROBE_MARGIN:
                    return start[: most + 1]
        return self._encode_literal(text)

    def encode_lead(self, lead: str) -> tuple[int, ...]:
        """Encode one of few texts that others stand behind. Its ids are kept."""
        if lead not in self._leads:
            self._leads[lead] = self.encode_content(lead)
        return self._leads[lead]

    def _encode_literal(self, text: str) -> tuple[int, ...]:
        """Encode text without control ids.

        Every control string is cut behind its first character and the parts are encoded apart. So
        neither the special-token matcher nor the vocabulary can join it again.
        """
        cuts = [0, *(match.start() + 1 for match in self._control_text.finditer(text)), len(text)]
        parts = [text[start:end] for start, end in itertools.pairwise(cuts)]
        return tuple(token for part in parts for token in _ids(self._literal, part))

    def decode(self, ids: tuple[int, ...]) -> str:
        """Decode `ids` to text, without control tokens."""
        return str(self._parsing.decode(list(ids), skip_special_tokens=True))

    def settled_length(self, ids: tuple[int, ...]) -> int:
        """Count the leading ids whose text later ids cannot change.

        Byte pieces are decoded run by run. An unfinished run at the end may still become other
        characters, so it has to wait. The decoder skips control tokens inside a run, and they do
        not end it.
        """
        length = len(ids)
        while length and self._may_change(ids[length - 1]):
            length -= 1
        return length

    def _may_change(self, token: int) -> bool:
        piece = self._parsing.id_to_token(token)
        return (
            token in self.control_ids or piece is None or _BYTE_PIECE.fullmatch(piece) is not None
        )


def load_codec(folder: Path, eos_ids: frozenset[int]) -> TextCodec:
    """Read tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Raises CheckpointError, which names the file.
    """
    path = folder / "tokenizer.json"
    source = files.read_text(path)
    try:
        parsing, literal = Tokenizer.from_str(source), Tokenizer.from_str(source)
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise CheckpointError(path, f"is not a tokenizer: {error}") from error
    literal.encode_special_tokens = True
    special = {
        token.content: id_
        for id_, token in parsing.get_added_tokens_decoder().items()
        if token.special or token.content in GRAMMAR_TOKENS
    }
    config = files.read_json(folder / "tokenizer_config.json")
    named = {key: _token_text(value) for key, value in config.items() if key.endswith("_token")}
    template_path = folder / "chat_template.jinja"
    template = (
        files.read_text(template_path) if template_path.is_file() else config.get("chat_template")
    )
    if not isinstance(template, str):
        raise CheckpointError(template_path, "has no chat template")
    # A lookahead, so that overlapping occurrences are all found. A one-character control token
    # cannot be cut.
    pattern = "|".join(
        re.escape(text) for text in sorted(special, key=len, reverse=True) if len(text) > 1
    )
    control_text = re.compile(f"(?={pattern})" if pattern else r"(?!)")
    return TextCodec(
        eos_ids, template, named, frozenset(special.values()), parsing, literal, control_text
    )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text.

    `encode` keeps the interpreter's lock. With two megabytes of text every other thread of the
    process would stand still for seconds, and in it the steps of all jobs. A batch lets it go.
    """
    if len(text) < LONG_TEXT_CHARS:
        encoded = tokenizer.encode(text, add_special_tokens=False)
    else:
        (encoded,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return list(encoded.ids)


def _token_text(value: object) -> str:
    """Return a named token's text: it is a string, or an object with a `content` in older files."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")
