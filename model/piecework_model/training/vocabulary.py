"""The tokenizer of the bundled checkpoint: one piece per word of the grammar, characters and bytes
for the rest.

It is a Unigram model with byte fallback (Kudo 2018, SentencePiece). A known word is one piece. An
unknown one falls apart into characters, and a character that is not printable ASCII into its UTF-8
bytes. So every string has an encoding, of at most four ids a character plus one, and decoding gives
the string back.
"""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from piecework_model.training import lexicon

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>")
PAD, EOS, BOS, UNKNOWN, TURN_START, TURN_END = range(6)
SPACE = "▁"  # U+2581, as in SentencePiece

# Whole words beat their characters, characters beat bytes. Only the order of these scores matters.
_WORD_SCORE, _CHARACTER_SCORE, _BYTE_SCORE = -4.0, -12.0, -20.0

CHAT_TEMPLATE = """{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
{{- '<|turn>system\\n' + messages[0]['content'] | trim + '<turn|>\\n' -}}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- '<|turn>' + role + '\\n' + message['content'] | trim + '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|turn>model\\n' -}}
{%- endif -%}
"""


def _strings(value: object) -> list[str]:
    """List all strings inside nested tuples, lists and dicts of the lexicon."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for text in _strings(pair)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []


def words() -> list[str]:
    """List every piece, with its leading space mark, that the grammar can produce, sorted."""
    texts = _strings([value for name, value in vars(lexicon).items() if name.isupper()])
    found = {
        word
        for text in texts
        for word in re.findall(r"\"?[A-Za-z]+", re.sub(r"\{\w*\}", " ", text))
    }
    nouns = [*lexicon.CHARACTERS, *lexicon.THINGS, *lexicon.PLACES]
    found |= {noun.capitalize() for noun in nouns} | {
        "a",
        "A",
        "an",
        "An",
        "the",
        "She",
        "He",
        "user",
        "model",
        "system",
    }
    return sorted(SPACE + word for word in found)


def build_tokenizer() -> Tokenizer:
    """Build the tokenizer: special tokens first, then words, then characters, then the 256
    bytes.
    """
    characters = [SPACE, "\n", *sorted(set(string.printable[:95]) - {" "})]
    pieces = [(token, 0.0) for token in SPECIAL_TOKENS]
    pieces += [(word, _WORD_SCORE) for word in [*words(), SPACE + '"']]
    known = {piece for piece, _ in pieces}
    pieces += [(character, _CHARACTER_SCORE) for character in characters if character not in known]
    pieces += [(f"<0x{byte:02X}>", _BYTE_SCORE) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, UNKNOWN, True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def tokenizer_config(max_context: int) -> dict[str, Any]:
    """Compose tokenizer_config.json. `max_context` in tokens."""
    return {
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "model_max_length": max_context,
        "pad_token": "<pad>",
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }


def write_tokenizer(folder: Path, max_context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`."""
    build_tokenizer().save(str(folder / "tokenizer.json"))
    config = json.dumps(tokenizer_config(max_context), indent=2, sort_keys=True)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
