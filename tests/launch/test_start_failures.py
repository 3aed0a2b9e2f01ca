"""What a shim says that could not start its worker: the error's number decides, and never the words.

Seen to fail: with the number looked for in the words.
"""

from __future__ import annotations

import errno

from hypothesis import given
from hypothesis import strategies as st

from boundd.launch import shim


@given(number=st.integers(1, 133), words=st.text(max_size=3000))
def test_the_number_of_an_error_of_the_system(number: int, words: str) -> None:
    """Whatever its words, and however long they are."""
    said = shim.start_failure(OSError(number, words))
    assert len(said) <= shim.START_FAILURE_BYTES
    assert shim.parse_start_failure(said)[0] == number


@given(words=st.text(max_size=100))
def test_words_are_no_number(words: str) -> None:
    """An error that only mentions a full disk isn't one of the disk."""
    failure = ValueError(f"[Errno {errno.ENOSPC}] {words}")
    number, told = shim.parse_start_failure(shim.start_failure(failure))
    assert number == 0
    assert told.startswith(f"ValueError: [Errno {errno.ENOSPC}]")


def test_other_output_is_not_a_start_failure() -> None:
    """Nothing, or what something else wrote, has no number; its words are kept."""
    assert shim.parse_start_failure(b"") == (0, "")
    assert shim.parse_start_failure(b"Segmentation fault") == (0, "Segmentation fault")
    assert shim.parse_start_failure("²\nx".encode()) == (0, "²x")
