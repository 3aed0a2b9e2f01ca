"""Sizes and durations: what is written is what is meant, and nothing else is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.config.units import MAX_DURATION_S, MAX_SIZE_BYTES, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512MiB", 512 * 1024**2), ("24GiB", 24 * 1024**3), ("24GB", 24 * 1000**3), ("1.5 KiB", 1536), ("0B", 0)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    """Binary and decimal units are told apart."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "bad", ["", "24", "GiB", "24 giga", "-1GiB", "1e3MiB", "24GiB24", "9999999TiB", "٣GiB", 24, None]
)
def test_bad_sizes_say_what_to_write(bad: object) -> None:
    """What isn't a size is refused with examples."""
    with pytest.raises(ValueError, match="24GiB"):
        parse_size(bad)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("30d", 2_592_000), ("250ms", 0.25), ("1.5h", 5400), ("0s", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    """Units add up."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("bad", ["", "90", "1h30", "30m1h", "1h1h", "-1s", "1 week", "99999999d", "1..5s", 90, True])
def test_bad_durations_say_what_to_write(bad: object) -> None:
    """What isn't a duration is refused with examples."""
    with pytest.raises(ValueError, match="1h30m"):
        parse_duration(bad)


@given(st.integers(0, 10**6), st.sampled_from([("B", 1), ("KiB", 1024), ("GB", 10**9), ("GiB", 2**30)]))
def test_every_whole_size_is_exact(number: int, unit: tuple[str, int]) -> None:
    """No size loses a byte to rounding."""
    assert parse_size(f"{number}{unit[0]}") == number * unit[1]


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_durations_are_sums(days: int, hours: int, minutes: int, seconds: int) -> None:
    """A duration is the sum of its parts."""
    total = days * 86400 + hours * 3600 + minutes * 60 + seconds
    assert parse_duration(f"{days}d{hours}h{minutes}m{seconds}s") == total


@given(st.text())
def test_any_text_is_a_value_in_range_or_a_clear_error(text: str) -> None:
    """No text makes a parser fail in another way."""
    for parse, limit in ((parse_size, MAX_SIZE_BYTES), (parse_duration, MAX_DURATION_S)):
        try:
            value = parse(text)
        except ValueError as error:
            message = str(error)
        else:
            value_is_good, message = 0 <= value <= limit, "such as"
            assert value_is_good
        assert "such as" in message
