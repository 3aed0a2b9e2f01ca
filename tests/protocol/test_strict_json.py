"""Strict JSON: what Python's parser takes and others don't is refused."""

import pytest

from boundd.protocol.strict_json import INT_MAX, INT_MIN, MAX_DEPTH, StrictJsonError, dumps, loads


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "NaN"),
        ("[-Infinity]", "-Infinity"),
        ("1e999", "not finite"),
        ("1" * 5000, "64 bits"),
        (str(INT_MAX + 1), "64 bits"),
        ('{"a": 1, "a": 2}', "twice"),
        (r'"\ud800"', "surrogate"),
        (r'{"\udc00": 1}', "surrogate"),
        ("[" * 100_000, "nested"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested"),
        ("{", "not JSON"),
        ("1 2", "not JSON"),
    ],
)
def test_refuses_what_cannot_be_kept(text: str, reason: str) -> None:
    """Each refusal says what is wrong."""
    with pytest.raises(StrictJsonError, match=reason):
        loads(text)


def test_takes_the_limits_themselves() -> None:
    """The largest integers and the deepest nesting are fine."""
    assert loads(f"[{INT_MIN}, {INT_MAX}]") == [INT_MIN, INT_MAX]
    loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63, "\udc80", {"a": float("-inf")}])
def test_dumps_refuses_the_same(value: object) -> None:
    """What loads would refuse is never written."""
    with pytest.raises(StrictJsonError):
        dumps(value)  # type: ignore[arg-type]


def test_dumps_is_one_ascii_line() -> None:
    """The text holds no newline and only ASCII, whatever the value."""
    text = dumps({"a": "é\n", "b": [1, 2.5, None, True]})
    assert text.isascii()
    assert "\n" not in text
    assert loads(text) == {"a": "é\n", "b": [1, 2.5, None, True]}
