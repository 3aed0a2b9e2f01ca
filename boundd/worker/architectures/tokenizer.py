"""A tokenizer of CLIP's shape that needs no download: 49,408 tokens, 77 of them a prompt.

It has CLIP's letters (every byte, inside a word and at its end) and marks at CLIP's own ids; between them, where CLIP
has its 48,894 merges, this one has placeholders that no text gives. A prompt falls apart into letters, so that
it is longer in tokens than by CLIP's own, and is cut at 77 all the same: what a model computes depends on neither.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from boundd.worker.architectures.configurations import MAX_TOKENS, VOCABULARY_SIZE

_MARKS = ("<|startoftext|>", "<|endoftext|>")


def build_tokenizer(pad_token: str) -> CLIPTokenizer:
    """A tokenizer that pads with `pad_token`: the end mark for CLIP, '!' (id 0) for OpenCLIP."""
    # Its annotation says that merges are strings; pairs are what the library below takes.
    build: Any = CLIPTokenizer
    tokenizer: CLIPTokenizer = build(
        vocab=dict(_vocabulary()), merges=[], pad_token=pad_token, model_max_length=MAX_TOKENS
    )
    return tokenizer


@cache
def _vocabulary() -> dict[str, int]:
    """Piece → id, in CLIP's order: letters from "!" on, letters that end a word, merges, the two marks."""
    # CLIP's order of the bytes is that of the printable ones first, which sorting by code point gives.
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [f"<|unused {index}|>" for index in range(VOCABULARY_SIZE - len(pieces) - len(_MARKS))]
    return {piece: index for index, piece in enumerate([*pieces, *_MARKS])}
