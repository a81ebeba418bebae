"""A small tokenizer and a chat template in the grammar of Gemma 4: turns, thoughts and tools.

The template does what the published one does with a conversation, in its own words: it sorts keys,
writes types in capitals, shows the answers of tools behind the calls, and closes an empty thought
where the model is not to think. Words are split into characters, so that no text is out of reach.
"""

from __future__ import annotations

import json
import string
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models

from piecework_model.text.tokens import TextCodec, load_codec

SPECIAL: Final = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
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
EOS, TURN_END, RESPONSE = 1, 5, 13
END_IDS: Final = frozenset((EOS, TURN_END, RESPONSE))
IMAGE_MARKS: Final = ("<|image>", "<|image|>", "<image|>")
TEMPLATE: Final = """{%- macro said(content) -%}
{%- if content is string -%}{{- content | trim -}}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}
{%- else -%}{{- part['text'] | trim -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro value_of(value) -%}
{%- if value is string -%}{{- '<|"|>' + value + '<|"|>' -}}
{%- elif value is boolean -%}{{- 'true' if value else 'false' -}}
{%- elif value is mapping -%}{
{%- for key, item in value | dictsort -%}
{{- key -}}:{{- value_of(item) -}}{{- '' if loop.last else ',' -}}
{%- endfor -%}}
{%- elif value is iterable -%}[
{%- for item in value -%}{{- value_of(item) -}}{{- '' if loop.last else ',' -}}{%- endfor -%}]
{%- else -%}{{- value -}}{%- endif -%}
{%- endmacro -%}
{%- macro field(schema) -%}{
{%- if schema['description'] -%}description:{{- value_of(schema['description']) -}},{%- endif -%}
{%- if schema['enum'] -%}enum:{{- value_of(schema['enum']) -}},{%- endif -%}
{%- if schema['properties'] is mapping -%}properties:{
{%- for key, item in schema['properties'] | dictsort -%}
{{- key -}}:{{- field(item) -}}{{- '' if loop.last else ',' -}}
{%- endfor -%}},{%- endif -%}
{%- if schema['required'] -%}required:{{- value_of(schema['required']) -}},{%- endif -%}
type:{{- value_of(schema['type'] | upper) -}}}
{%- endmacro -%}
{{- bos_token -}}
{%- set given = messages[0]['role'] == 'system' -%}
{%- if given or tools or enable_thinking -%}
{{- '<|turn>system\\n' -}}
{%- if enable_thinking -%}{{- '<|think|>\\n' -}}{%- endif -%}
{%- if given -%}{{- said(messages[0]['content']) -}}{%- endif -%}
{%- for tool in tools or [] -%}
{{- '<|tool>declaration:' + tool['function']['name'] + '{description:' -}}
{{- value_of(tool['function']['description']) + ',parameters:' -}}
{{- field(tool['function']['parameters']) + '}<tool|>' -}}
{%- endfor -%}
{{- '<turn|>\\n' -}}
{%- endif -%}
{%- set all = messages[1:] if given else messages -%}
{%- set state = namespace(open=false) -%}
{%- for message in all -%}
{%- if message['role'] != 'tool' -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{%- if not (state.open and role == 'model') -%}{{- '<|turn>' + role + '\\n' -}}{%- endif -%}
{%- set state.open = false -%}
{%- set thought = message['reasoning'] or message['reasoning_content'] -%}
{%- if thought and message['tool_calls'] -%}
{{- '<|channel>thought\\n' + thought + '\\n<channel|>' -}}
{%- endif -%}
{%- for call in message['tool_calls'] or [] -%}
{{- '<|tool_call>call:' + call['function']['name'] -}}
{{- value_of(call['function']['arguments']) + '<tool_call|>' -}}
{%- endfor -%}
{%- set scan = namespace(on=true) -%}
{%- for follow in all[loop.index:] if message['tool_calls'] -%}
{%- if scan.on and follow['role'] == 'tool' -%}
{{- '<|tool_response>response:' + follow['name'] + '{value:' -}}
{{- value_of(follow['content']) + '}<tool_response|>' -}}
{%- set state.open = true -%}
{%- else -%}{%- set scan.on = false -%}{%- endif -%}
{%- endfor -%}
{{- said(message['content']) -}}
{%- if not state.open or message['content'] -%}
{{- '<turn|>\\n' -}}{%- set state.open = false -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not state.open -%}
{{- '<|turn>model\\n' -}}
{%- if not enable_thinking -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}
{%- endif -%}
"""


def build_tokenizer(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """Build the tokenizer: special tokens, printable ASCII, a few names, then the bytes."""
    pieces = [(token, 0.0) for token in special]
    pieces += [(word, -2.0) for word in ("call:", "thought", "city", "Oslo", "get_weather")]
    pieces += [(character, -8.0) for character in string.printable[:95] + "\n"]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, SPECIAL.index("<unk>"), True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


@cache
def codec() -> TextCodec:
    """The tokenizer with its template, read as that of a checkpoint is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>"}))
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        return load_codec(folder, END_IDS)


def written(text: str) -> tuple[int, ...]:
    """The ids of what a model writes, control tokens included."""
    return codec().encode_template(text)
