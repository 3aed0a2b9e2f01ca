"""What the built-in digits models understand: prompts that name one digit, by its word or by its figure."""

from __future__ import annotations

import re
from typing import Final

DIGIT_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Each is filled with a word ("seven") or a figure ("7"). The models are trained on all of them.
TEMPLATES: Final = (
    "a handwritten {}",
    "the digit {}",
    "a handwritten digit {}",
    "a photo of the number {}",
    "the number {} written by hand",
    "a {} in black ink on white paper",
    "a small drawing of the digit {}",
    "an old scan of a handwritten {}",
    "the figure {} from a postal code",
    "a clear picture of the numeral {}",
    "a {} written with a thick pen",
    "{}",
)

_DIGIT_OF_TOKEN: Final = {word: digit for digit, word in enumerate(DIGIT_WORDS)} | {
    str(digit): digit for digit in range(10)
}
_TOKEN: Final = re.compile(r"[a-z]+|[0-9]+")


def written_digit(digit: int, *, as_word: bool) -> str:
    """The digit as prompts write it: "seven" or "7"."""
    return DIGIT_WORDS[digit] if as_word else str(digit)


def digit_in(prompt: str) -> int:
    """The one digit, 0 to 9, that a prompt names.

    Raises ValueError where it names none, or two different ones: a score against a guess would mean nothing.
    """
    found = {_DIGIT_OF_TOKEN[token] for token in _TOKEN.findall(prompt.lower()) if token in _DIGIT_OF_TOKEN}
    if len(found) == 1:
        return found.pop()
    named = "no digit" if not found else f"{len(found)} different digits"
    raise ValueError(
        f"the prompt {prompt!r} names {named}; the built-in digits models need exactly one, "
        "as a word ('seven') or a figure ('7')"
    )


def _varied_prompts() -> tuple[str, ...]:
    """120 prompts in which any ten in a row name all ten digits, in twelve wordings, half words, half figures."""
    templates = len(TEMPLATES)
    return tuple(
        # 3 and 7 are coprime to 10, and 5 to 12: digits and wordings each run through a whole cycle.
        TEMPLATES[(5 * index + index // 60) % templates].format(
            written_digit((3 * index + 7) % 10, as_word=(index + index // 10) % 2 == 0)
        )
        for index in range(10 * templates)
    )


PROMPTS: Final[tuple[str, ...]] = _varied_prompts()
"""Prompts to generate from, in the order in which a run with fewer samples takes them."""
