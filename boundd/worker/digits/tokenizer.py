"""A CLIP tokenizer with a vocabulary of its own: every letter, and the words that digit prompts are made of.

It has CLIP's byte-pair files, so that transformers loads it as it loads CLIP's. A word it knows is one token; any
other falls apart into letters and is read all the same.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from boundd.worker.digits.prompts import DIGIT_WORDS, TEMPLATES

MAX_TOKENS: Final = 16
"""Length of every encoded prompt, start and end included."""

_FILLER: Final = """
    a an the of in on by with from and this that is it my your his her our their very quite nice neat good
    bad ugly clear blurry sharp dark bright grey black white blue red thin thick bold big small large tiny old
    new ink pen pencil brush chalk paper page note sheet postal code form letter bank cheque scan photo picture
    image drawing sketch painting sample print digit digits number numeral figure sign character symbol
    handwritten written drawn scanned printed hand child teacher style line stroke single centre middle
"""
FILLER_WORDS: Final = tuple(_FILLER.split())
"""Words that say nothing about which digit is meant: the text encoders learn to look past them."""

_START: Final = "<|startoftext|>"
_END: Final = "<|endoftext|>"


def known_words() -> tuple[str, ...]:
    """Every word that has a token of its own, in a fixed order."""
    of_templates = (word for template in TEMPLATES for word in template.replace("{}", " ").split())
    words = dict.fromkeys((*DIGIT_WORDS, *of_templates, *FILLER_WORDS))
    return tuple(word for word in words if word.isalpha())


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's pieces with every occurrence of the pair, from the left, made one piece."""
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def _byte_pair_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair encoding, learned until each word is one piece: the most frequent pair first, ties by spelling."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(pieces, best) for pieces in spelled]
    return merges


def build_tokenizer(folder: Path, *, pad_token: str = _END) -> CLIPTokenizer:
    """Write the tokenizer's files into `folder` and return it, loaded from them."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = _byte_pair_merges(known_words())
    # CLIP's order: letters, letters that end a word, merged pairs, the two marks. "!" comes first, hence is 0.
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(left + right for left, right in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, _START, _END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # Its annotation says that merges are strings; pairs are what the library below takes.
    build: Any = CLIPTokenizer
    built = build(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=MAX_TOKENS)
    built.save_pretrained(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer
