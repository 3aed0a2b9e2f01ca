"""Prompts: each names one digit, and the digit is read from it."""

import subprocess
import sys

import pytest

from boundd.worker.digits import DIGIT_WORDS, MODEL_NAMES, PROMPTS, digit_in, model_folder, scorer_folder


def test_there_are_many_different_prompts_and_any_ten_in_a_row_name_every_digit() -> None:
    """A run of few samples sees as many digits as it has samples."""
    assert len(PROMPTS) >= 64
    assert len(set(PROMPTS)) == len(PROMPTS)
    for start in range(len(PROMPTS) - 9):
        assert {digit_in(prompt) for prompt in PROMPTS[start : start + 10]} == set(range(10))


@pytest.mark.parametrize("digit", range(10))
def test_a_digit_is_read_from_its_word_and_from_its_figure(digit: int) -> None:
    """In any case, beside punctuation, and said twice."""
    assert digit_in(DIGIT_WORDS[digit]) == digit
    assert digit_in(f"A photo of the number {DIGIT_WORDS[digit].upper()}, please.") == digit
    assert digit_in(f"the digit {digit}") == digit
    assert digit_in(f"{DIGIT_WORDS[digit]} ({digit})") == digit


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a cat", "names no digit"),
        ("", "names no digit"),
        ("the number 42", "names no digit"),
        ("a stone, often", "names no digit"),
        ("a seven or an eight", "names 2 different digits"),
    ],
)
def test_a_prompt_that_does_not_name_one_digit_is_refused(prompt: str, reason: str) -> None:
    """With the prompt and the reason, rather than scored against a guess."""
    with pytest.raises(ValueError, match=reason):
        digit_in(prompt)


def test_folders_are_named_and_an_unknown_name_is_refused() -> None:
    """The names that a config may use lead to folders inside the package."""
    for name in MODEL_NAMES:
        assert (model_folder(name) / "model_index.json").is_file()
    assert (scorer_folder() / "config.json").is_file()
    with pytest.raises(ValueError, match=r"digits-sd15, digits-sd21, digits-sdxl"):
        model_folder("digits-sd3")


def test_importing_the_package_loads_no_heavy_library() -> None:
    """Names, folders and prompts are had without torch."""
    code = (
        "import sys, boundd.worker.digits; "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'sklearn', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
