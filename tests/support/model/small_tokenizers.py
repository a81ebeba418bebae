"""Tokenizers of the two other families in use, small, as codecs of a checkpoint."""

from __future__ import annotations

import itertools
import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Encoding,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from piecework_model.text.tokens import TextCodec, load_codec
from piecework_model.training.vocabulary import CHAT_TEMPLATE, EOS, SPECIAL_TOKENS, TURN_END

SPACE = "▁"


def merged_tokenizer(pairs: int = 300) -> Tokenizer:
    """BPE with byte fallback as Gemma's: no space is put before a text, ` A` is one piece.

    pairs: two-letter pieces of capitals, with a space before them too.
    """
    letters = string.ascii_letters + string.digits
    characters = [SPACE, "\n", *sorted(set(string.printable[:95]) - {" "})]
    merges = [(SPACE, letter) for letter in letters]
    for first, second in itertools.islice(itertools.product(letters[26:52], repeat=2), pairs):
        merges += [(first, second), (SPACE + first, second)]
    pieces = [
        *SPECIAL_TOKENS,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *characters,
        *(first + second for first, second in merges),
    ]
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)},
        merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _with_control(tokenizer)


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE without a merge: 256 pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIAL_TOKENS, *alphabet]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_control(tokenizer)


def codec_of(tokenizer: Tokenizer, folder: Path) -> TextCodec:
    """Write a tokenizer as a checkpoint has it, and read it back."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>"}))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return load_codec(folder, frozenset({EOS, TURN_END}))


class CountingTokenizer:
    """A tokenizer that counts the texts that it encodes."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner
        self.encoded = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        """Encode, and count."""
        self.encoded += 1
        return self._inner.encode(text, add_special_tokens=add_special_tokens)


def counting(codec: TextCodec) -> tuple[TextCodec, CountingTokenizer]:
    """Return the codec with a counter of what strangers' texts it encodes."""
    counter = CountingTokenizer(codec._literal)
    literal: Any = counter
    return replace(codec, _literal=literal, _leads={}), counter


def _with_control(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer
