"""What is read from what somebody's own script prints: the right number, or none.

Seen to fail: with `is_whole_word` always true, `min_required_speedup: 3.00` wins; without the exponent in `_NUMBER`,
`9.31e-01` is 9.31; with `_problem_behind` always empty, `2,31` is 2; without `parts_of`, what a colour or a carriage
return stands beside isn't read.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boundd.protocol.script_output import (
    MAX_SPEEDUP,
    MIN_SPEEDUP,
    ScriptOutputReader,
    ScriptResults,
    pattern_problem,
)

FINAL = r"final speedup: (\S+)"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("speedup: 2.31", 2.31),
        ("x speedup: 2.31, loss 0.01", 2.31),
        ("theoretical max speedup: 8.00", 8.0),
        ("INFO:root:speedup: 2.31", 2.31),
        ("  - speedup: 2.31", 2.31),
        ("measuring...speedup: 2.31", 2.31),
        ("(speedup: 2.31)", 2.31),
        ("speedup: 2.31e+01", 23.1),
        ("speedup: 9.31e-01", 0.931),
        ("speedup: 9.31E-1.", 0.931),
        ("speedup: +2.31", 2.31),
        ("speedup:\t2.31", 2.31),
        ("speedup:2.31", 2.31),
        ("speedup: 2", 2.0),
        ("speedup: 2.", 2.0),
        ("speedup: .93", 0.93),
        ("speedup: 2.31x", 2.31),
        ("speedup: 2.31 x (8 images)", 2.31),
        ("speedup: 2.31×", 2.31),
        ("speedup: 2.31 ± 0.05", 2.31),
        ("speedup: 2.31+-0.05", 2.31),
        ("speedup: 2.31,0.01", 2.31),
        ("speedup: 2.31; loss: 0.01", 2.31),
        ("speedup: 2.31 - 50 steps", 2.31),
        ("speedup: 2.31|12%", 2.31),
        ("speedup: 2.31 3.5it/s", 2.31),
        ("speedup: 2.31 min 2.20", 2.31),
        ("\ufeffspeedup: 2.31", 2.31),
        ("speedup: \x1b[32m2.31\x1b[0m", 2.31),
        ("\x1b[1;31mspeedup:\x1b[0m \x1b[1m2\x1b[0m", 2.0),
        ("\x1b[1mspeedup\x1b[0m: 2.31", 2.31),
        ("\x1b]0;title\x07speedup: 2.31\x1b[K", 2.31),
        ("\x1b[2A\x1b[2Kspeedup: 2.31\x1b[2B 99%", 2.31),
        ("\r 99%|####| 99/100\rspeedup: 2.31", 2.31),
        ("speedup: 2.31\r\n", 2.31),
        ("\r1%\r2%\rspeedup: 1.20\rspeedup: 2.31\r3%", 2.31),
        ("speedup: 1.20\nspeedup: 2.31\nspeedup: 0.90", 2.31),
        ("min_required_speedup: 3.00\nspeedup: 1.31", 1.31),
        ("speedup: measuring\nspeedup: 1.31", 1.31),
    ],
)  # fmt: skip
def test_a_whole_word_and_a_whole_number(text: str, value: float) -> None:
    """Anywhere in a line, coloured or not, behind a progress bar; the largest wins."""
    found = ScriptResults.of(text)
    assert (found.largest, found.malformed) == (value, "")


@pytest.mark.parametrize(
    "text",
    [
        "min_required_speedup: 3.00", "max-speedup: 3.00", "run.speedup: 3.00", "a/speedup: 3.00", "--speedup: 3.00",
        "überspeedup: 3.00", "speedups: 3.00", "speedup_goal: 3.00", "Speedup: 3.00", "speedup = 3.00",
        '{"speedup": 3.00}', "speedup: none", "speedup: information", "speedup: ~3.00", "speedup:", "",
    ],
)  # fmt: skip
def test_what_is_no_result(text: str) -> None:
    """A longer name, another sign, no number: nothing is read, and that is no failure by itself."""
    found = ScriptResults.of(text)
    assert (found.largest, found.malformed) == (None, "")


MALFORMED = [
    "nan", "-nan", "NaN", "inf", "+inf", "-inf", "Infinity", "∞", "0", "0.0", "-2.31", "−2.31", "- 2.31", "1e400",
    "1e9", "1001", "1e-5", "9" * 400, "2,31", "1,234.5", "1.234,5", "1.234.567,89", "1 234.5", "1'234.5", "2_0",
    "2.3.1", "12:30", "2.31%", "31 %", "31 per cent", "1/2", "1 / 2", "2 1/2", "2½", "2 ½", "2^3", "2**3", "2.31×10^1",
    "2.31 x 10^1", "2.31 e+01", "1:,0", "2.31:-1", "31 pct", "2.31/s", "2.31 it/s", "2.31 s/it", "2 hours",
    "2.31e", "2.31e+", "0x12", "2.31s", "2.31 s", "2.31 ms", "2.31dB", "1.5-2.0", "1.5–2.0", "1.5..2.0", "1.0 -> 2.31",
    "1.5 to 2.0", "2 of 10", "٢.٣١", "2.3١", "2.3\x001", "2.3\x08\x084.1", "2.3\x1b[2C1", "2.3\x1b",
]  # fmt: skip


@pytest.mark.parametrize("number", MALFORMED)
def test_what_is_malformed(number: str) -> None:
    """Half of it would be another number: it is quoted, with the line, beside a result that is fine too."""
    found = ScriptResults.of(f"speedup: 1.31\nspeedup: {number}\n")
    assert found.malformed.startswith("line 2 of its log: its speed-up ")
    assert ascii(number[:20])[1:3] in found.malformed
    assert found.malformed.isprintable()


def test_the_line_is_told() -> None:
    """Which line the result is from, without colours, and how many there are."""
    found = ScriptResults.of("a\nspeedup: 1.2\n\x1b[32mspeedup: 2.31\x1b[0m, loss 0.1\nspeedup: 2.0\n")
    assert found.line is not None
    assert (found.line.number, found.line.text, found.count) == (3, "speedup: 2.31, loss 0.1", 3)
    assert ScriptResults.of("x\nspeedup: soon").unread == "line 2 of its log: 'speedup: soon'"


def test_score_loss_is_read_likewise() -> None:
    """On the line of its speed-up, or alone where there is one of each; and what is within a tolerance is known."""
    found = ScriptResults.of(
        "speedup: 3.0, score_loss: 0.3\nspeedup: 2.0, score_loss: 1e-2\nspeedup: 1.5, score_loss: -0.01"
    )
    assert found.largest == 3.0
    assert [found.fastest_within(tolerance) for tolerance in (0.5, 0.02, 0.0, -0.5)] == [3.0, 2.0, 1.5, None]
    assert ScriptResults.of("speedup: 2.0\nscore_loss: 0.01").scored == ((2.0, 0.01),)
    assert ScriptResults.of("speedup: 2.0\nspeedup: 3.0\nscore_loss: 0.01").scored == ()
    assert ScriptResults.of("speedup: 2.0, max_score_loss: 0.5").scored == ()
    for wrong in ("nan", "1%", "30", "-3000", "0,01"):
        assert "score loss" in ScriptResults.of(f"speedup: 2.0, score_loss: {wrong}").malformed


def test_a_pattern_of_ones_own() -> None:
    """It finds the place, and the number there is read whole; a pattern that would halve it is malformed."""
    text = "theoretical max speedup: 8.00\nfinal speedup: 2.31e+01\n"
    assert ScriptResults.of(text, FINAL).largest == 23.1
    assert "pattern found '2.31'" in ScriptResults.of(text, r"final speedup: (\d+\.\d+)").malformed
    both = r"x(?P<speedup>\S+) at (?P<score_loss>\S+)"
    assert ScriptResults.of("x2.31 at 0.01", both).scored == ((2.31, 0.01),)
    assert "speed-up" in ScriptResults.of("final speedup: soon", FINAL).malformed
    assert ScriptResults.of("speedup: 9.0", FINAL).largest is None


def test_what_can_be_wrong_with_a_pattern() -> None:
    """Each with what to do."""
    assert pattern_problem(FINAL) == pattern_problem(FINAL, "final speedup: 2.31") == ""
    assert "regular expression" in pattern_problem("(")
    assert "0 groups" in pattern_problem("speedup: ")
    assert "2 groups" in pattern_problem("(a)(b)")
    assert "no group that is named speedup" in pattern_problem("(?P<score_loss>x)")
    assert "'best'" in pattern_problem("(?P<best>x)")
    assert "finds nothing in the sample 'x'" in pattern_problem(FINAL, "x")
    assert "is not a whole number" in pattern_problem(r"speedup: (\d)", "speedup: 2.31")


# Generated: a script that reports what is known, in every form there is, around whatever else it prints.

NUMBER_FORMATS = ("{:.2f}", "{:.4f}", "{:.3g}", "{:e}", "{:.2E}", "{:g}", "{:+.2f}", "{:.0f}", "{!r}")
PREFIXES = (
    "", "x ", "[3/9] ", "INFO:root:", "2026-01-01 03:04:05,678 INFO ", "\r 99%|####| 99/100\r", "- ", "(", "*", "'",
    "a: ", "\x1b[2K\r", "\x1b[1A", "\x1b[?25h", "8.00x goal, ", "loss 0.5,", "…", "max ", "\t", "#", "> ", "最大 ",
)  # fmt: skip
SUFFIXES = (
    "", ", loss 0.01", "x", " x", "×", ")", " (8 images)", ".", "; loss: 0.5", " ± 0.05", "\r", "\r100%", " - done",
    "|12%", " at 20 steps", "\x1b[0m", "\x1b[K", "'", "]", " # 9.99", ", 12:30", " vs 1.00", "\x1b[1A\r8.00",
    " → ok", "!",
)  # fmt: skip
STYLES = ("{}", "\x1b[32m{}\x1b[0m", "\x1b[1;38;5;200m{}\x1b[m", "\x1b[4m\x1b[91m{}\x1b[0m\x1b[K", "\x9b32m{}\x9b0m")
DECOYS = (
    "min_required_speedup: {}", "max-speedup: {}", "stats.speedup: {}", "Speedup: {}", "speedup_goal: {}",
    "speedups: {}", "speedup = {}", "the speedup of {}", "speed-up: {}", "speedup ({}):", "target/speedup: {}",
    "--speedup: {}", "{}", "speedup: none, goal {}", "xspeedup: {}", "speedup is: {}", "_speedup: {}", "{}x",
    "{}speedup", "speedup; {}",
)  # fmt: skip

values = st.one_of(
    st.floats(0.011, 900), st.integers(1, 999).map(float), st.sampled_from([0.931, 2.31, 23.1, 1.0, 100.0, 999.0])
)


@st.composite
def results(draw: st.DrawFn) -> tuple[str, float]:
    """A line that reports a speed-up, and which."""
    number = draw(st.sampled_from(NUMBER_FORMATS)).format(draw(values))
    if not MIN_SPEEDUP <= float(number) <= MAX_SPEEDUP:
        number = "2.31"
    style, whole = draw(st.sampled_from(STYLES)), draw(st.sampled_from(STYLES))
    blank = draw(st.sampled_from((" ", "  ", "\t", "", " ")))
    line = whole.format(f"speedup:{blank}{style.format(number)}")
    suffix = draw(st.sampled_from(SUFFIXES))
    if suffix == "." and "." not in number:
        suffix = ". "
    return draw(st.sampled_from(PREFIXES)) + line + suffix, float(number)


decoys = st.builds(
    lambda text, number, style: style.format(text.format(number)),
    st.sampled_from(DECOYS),
    st.sampled_from(("3.00", "999.9", "1e2", "7")),
    st.sampled_from(STYLES),
)
malformed = st.builds(
    lambda prefix, number, style: f"{prefix}speedup: {style.format(number)}",
    st.sampled_from(("", "x ", "INFO:root:", "\r5%\r")),
    st.sampled_from(MALFORMED),
    st.sampled_from(STYLES),
)


def check(good: list[tuple[str, float]], other: list[str], bad: list[str], order: list[int], cuts: list[int]) -> None:
    """Whatever it stands among and in whatever pieces it comes, the largest is read, or one is said to be malformed."""
    lines = [line for line, _ in good] + other + bad
    text = "\n".join(lines[i] for i in sorted(range(len(lines)), key=lambda i: order[i % len(order)] * (i + 7) % 97))
    data, reader, at = text.encode(), ScriptOutputReader(), 0
    for cut in sorted(cut % (len(data) + 1) for cut in cuts):
        reader.feed(data[at:cut])
        at = cut
    reader.feed(data[at:])
    found = reader.finish()
    assert found == ScriptResults.of(text)
    if bad:
        assert found.malformed, text
    else:
        assert found.malformed == "", text
        assert found.largest == max((value for _, value in good), default=None), text


parts = {
    "good": st.lists(results(), max_size=4),
    "other": st.lists(decoys, max_size=4),
    "bad": st.one_of(st.just([]), st.lists(malformed, max_size=1)),
    "order": st.lists(st.integers(1, 96), min_size=8, max_size=8),
    "cuts": st.lists(st.integers(0, 10_000), max_size=4),
}
quiet = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@settings(max_examples=700, **quiet)
@given(**parts)
def test_generated_outputs(**drawn: list[object]) -> None:
    """Numbers formatted in every way, around decoys: 0 wrong ones."""
    check(**drawn)  # type: ignore[arg-type]


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@settings(max_examples=20_000, **{**quiet, "derandomize": False})
@given(**parts)
def test_generated_outputs_at_length(**drawn: list[object]) -> None:
    """The same, 20,000 of them."""
    check(**drawn)  # type: ignore[arg-type]


def longest_number(text: str) -> tuple[float | None, str]:
    """What Python reads at the beginning of a text, as much of it as it can, and what is left."""
    for end in range(len(text), 0, -1):
        try:
            return float(text[:end]), text[end:]
        except ValueError:
            continue
    return None, text


@settings(max_examples=2000, **quiet)
@given(st.text("0123456789.,eE+-_x%:/'^ \t\x1b\x00½√", min_size=1, max_size=12))
def test_no_part_of_a_token_is_read(token: str) -> None:
    """What is read is as much as Python itself would read, and nothing behind it makes it another number."""
    found = ScriptResults.of(f"speedup: {token}")
    if found.largest is None:
        return
    value, rest = longest_number(token.strip().split(" ")[0].split("\t")[0])
    assert found.largest == value, token
    assert re.match(r"x($|\W)|([^\w.:/'^%-]|$|[.:/'^-]+($|\D))", rest), token
