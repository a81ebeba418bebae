"""The tokenizer of the bundled checkpoint: one piece per word of its language, characters and bytes
for the rest.

It is a Unigram model with byte fallback (Kudo 2018, SentencePiece). A known word is one piece, with
a space in front and without. An unknown one falls apart into characters, and a character that is
not printable ASCII into its UTF-8 bytes. So every string has an encoding, of at most four ids a
character, and decoding gives the string back. As in Gemma's tokenizer no space is added in front of
a text, so a text may be encoded in parts.
"""

from __future__ import annotations

import json
import re
import string
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from piecework_model.text.tokens import GRAMMAR_TOKENS, TextCodec, load_codec
from piecework_model.training import lexicon, phrases

SPECIAL_TOKENS: Final = ("<pad>", "<eos>", "<bos>", "<unk>", *GRAMMAR_TOKENS)
PAD, EOS, BOS, UNKNOWN, TURN_START, TURN_END = range(6)
TOOL_RESPONSE: Final = SPECIAL_TOKENS.index("<|tool_response>")
END_IDS: Final = (EOS, TURN_END, TOOL_RESPONSE)
"""A turn ends with one of these. Behind a tool call the model asks for the response."""
SPACE: Final = "▁"  # U+2581, as in SentencePiece
_JSON_PIECES: Final = (
    *('{"', '":', '",', '"}', '["', '"],', '"},', ":{", "}}"),
    *(SPACE + piece for piece in ('"', '{"', '["')),
)

# What JSON schemas, and the declarations that the chat template makes of them, are full of.
_SCHEMA_WORDS: Final = (
    *("additionalProperties", "declaration", "description", "enum", "false", "object"),
    *("parameters", "properties", "required", "response", "string", "title", "true", "type"),
    *("value", "OBJECT", "STRING"),
)

# Whole words beat their characters, characters beat bytes. Only the order of these scores matters.
_WORD_SCORE, _CHARACTER_SCORE, _BYTE_SCORE = -4.0, -12.0, -20.0

# Gemma 4's grammar of turns, channels and tools, without images.
CHAT_TEMPLATE: Final = """{%- macro shown(value) -%}
{%- if value is string -%}
{{- '<|"|>' + value + '<|"|>' -}}
{%- elif value is boolean -%}
{{- 'true' if value else 'false' -}}
{%- elif value is mapping -%}
{{- '{' -}}
{%- for key, item in value | dictsort -%}
{{- key + ':' -}}
{%- if key == 'type' and item is string -%}
{{- shown(item | upper) -}}
{%- else -%}
{{- shown(item) -}}
{%- endif -%}
{{- '' if loop.last else ',' -}}
{%- endfor -%}
{{- '}' -}}
{%- elif value is sequence -%}
{{- '[' -}}
{%- for item in value -%}
{{- shown(item) -}}
{{- '' if loop.last else ',' -}}
{%- endfor -%}
{{- ']' -}}
{%- elif value is none -%}
{{- 'null' -}}
{%- else -%}
{{- value -}}
{%- endif -%}
{%- endmacro -%}
{%- macro plain(content) -%}
{%- if content is string -%}
{{- content | trim -}}
{%- elif content is sequence -%}
{%- for part in content -%}
{%- if part['type'] == 'text' -%}
{{- part['text'] | trim -}}
{%- else -%}
{{- raise_exception('this model sees no ' + part['type']) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set system = messages[0]['role'] in ['system', 'developer'] -%}
{%- if system or tools or enable_thinking -%}
{{- '<|turn>system\\n' -}}
{%- if enable_thinking -%}
{{- '<|think|>\\n' -}}
{%- endif -%}
{%- if system -%}
{{- plain(messages[0]['content']) -}}
{%- endif -%}
{%- for tool in tools or [] -%}
{%- set function = tool['function'] -%}
{{- '<|tool>declaration:' + function['name'] + '{description:' -}}
{{- shown(function['description'] or '') + ',parameters:' -}}
{{- shown(function['parameters'] or {}) + '}<tool|>' -}}
{%- endfor -%}
{{- '<turn|>\\n' -}}
{%- endif -%}
{%- set state = namespace(open=false) -%}
{%- for message in (messages[1:] if system else messages) -%}
{%- if message['role'] == 'tool' -%}
{{- '<|tool_response>response:' + (message['name'] or 'unknown') + '{value:' -}}
{{- '<|"|>' + plain(message['content']) + '<|"|>}<tool_response|>' -}}
{%- else -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{%- if state.open and role != 'model' -%}
{{- '<turn|>\\n' -}}
{%- set state.open = false -%}
{%- endif -%}
{%- if not state.open -%}
{{- '<|turn>' + role + '\\n' -}}
{%- endif -%}
{%- set thought = message['reasoning'] or message['reasoning_content'] -%}
{%- if thought and message['tool_calls'] -%}
{{- '<|channel>thought\\n' + thought + '\\n<channel|>' -}}
{%- endif -%}
{%- for call in message['tool_calls'] or [] -%}
{{- '<|tool_call>call:' + call['function']['name'] -}}
{%- set arguments = call['function']['arguments'] -%}
{{- ('{' + arguments + '}') if arguments is string else shown(arguments) -}}
{{- '<tool_call|>' -}}
{%- endfor -%}
{{- plain(message['content']) -}}
{%- if message['tool_calls'] -%}
{%- set state.open = true -%}
{%- else -%}
{{- '<turn|>\\n' -}}
{%- set state.open = false -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not state.open -%}
{{- '<|turn>model\\n' -}}
{%- endif -%}
"""


def _strings(value: object) -> list[str]:
    """List all strings inside nested tuples, lists and dicts of the data modules."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for text in _strings(pair)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []


def words() -> list[str]:
    """List every word that the language has, sorted: of stories, requests, questions and tools."""
    texts = _strings(
        [
            value
            for module in (lexicon, phrases)
            for name, value in vars(module).items()
            if name.isupper()
        ]
    )
    found = {
        word for text in texts for word in re.findall(r"[A-Za-z]+", re.sub(r"\{\w*\}", " ", text))
    }
    nouns = [*lexicon.CHARACTERS, *lexicon.THINGS, *lexicon.PLACES]
    found |= {noun.capitalize() for noun in nouns}
    found |= set(_SCHEMA_WORDS)
    return sorted(found | {"an", "An", "the", "She", "He", "user", "model", "system", "thought"})


@cache
def build_tokenizer() -> Tokenizer:
    """Build the tokenizer: special tokens first, then words, then characters, then the 256
    bytes.
    """
    pieces = [(token, 0.0) for token in SPECIAL_TOKENS]
    long_words = [word for word in words() if len(word) > 1]
    # A capital alone stays apart from its space: an option's letter is the same token anywhere.
    spaced = [word for word in words() if word not in string.ascii_uppercase]
    pieces += [(SPACE + word, _WORD_SCORE) for word in spaced]
    pieces += [(word, _WORD_SCORE) for word in [*long_words, *_JSON_PIECES]]
    characters = [SPACE, "\n", *sorted(set(string.printable[:95]) - {" "})]
    pieces += [(character, _CHARACTER_SCORE) for character in characters]
    pieces += [(f"<0x{byte:02X}>", _BYTE_SCORE) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, UNKNOWN, True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


@cache
def build_codec() -> TextCodec:
    """Build what the engine makes of this tokenizer and its chat template."""
    with tempfile.TemporaryDirectory(prefix="piecework-tokenizer-") as folder:
        write_tokenizer(Path(folder), max_context=0)
        return load_codec(Path(folder), frozenset(END_IDS))


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
