"""What somebody's own script prints, and which of it is a result: `result = "stdout"`.

A line is a result where it says `speedup: X`, with `speedup` a whole word: `min_required_speedup: 3.00` is none. X is
read whole, with its exponent, or not at all: `2,31`, `12:30`, `31 %`, nan and 0 are malformed, and a malformed line is
a failure of the attempt which quotes it. `score_loss: X` is read likewise. A script that prints other speed-ups too
says with a pattern of its own where its result is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

SPEEDUP = "speedup"
SCORE_LOSS = "score_loss"
MIN_SPEEDUP, MAX_SPEEDUP = 1e-3, 1e3
"""What can be a speed-up. Leaving out all but one of the 1,000 steps that a model was trained with gives 1,000."""
MAX_SCORE_LOSS = 1.0
"""(baseline - accelerated) / baseline of scores above 0 is at most 1; as much the other way is no loss of any use."""
PIECE_BYTES = 64 * 1024
"""A line without an end is looked at in pieces of this size."""
_OVERLAP_BYTES = 4096
"""A result that begins so close to the end of such a piece is left for the next one, which has all of it."""
_BEFORE_BYTES = 64
"""So much from before a piece tells whether a word begins where the piece begins."""
LINE_CHARACTERS = 200
"""A line is quoted and kept cut to this."""

_NUMBER = re.compile(r"[+\-−–—]?[ \t]*(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[+\-−–—]?[ \t]*(?:nan|inf|infinity|∞)(?!\w)", re.IGNORECASE)
_WORD = {name: re.compile(rf"{name}:") for name in (SPEEDUP, SCORE_LOSS)}
_NEEDLES = re.compile(rf"{SPEEDUP}|{SCORE_LOSS}".encode())
"""Without the colon, which may have another colour."""
_JOINS = "-‐‑‒–—./\\"
"""Between two parts of one name: `max-speedup`, `run.speedup`."""
_BLANKS = " \t\v\u00a0\u2009\u202f"

_STYLE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[mKJhl]"  # colours, erasing, modes: nothing that moves what is read
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and links
    r"|\x1b[()][0-9A-B]|\x1b[=>]"
    r"|\x9b[0-?]*[mKJhl]"
)
_TO_ANOTHER_LINE = re.compile(r"(?:\x1b\[|\x9b)[0-9;]*[ABEFHfSTd]")
_WITHIN_THE_LINE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
_BREAK = re.compile(r"[\r\n\x0c\x85\u2028\u2029]")

_POWER_OF_TEN = re.compile(r"[ \t]*[x×*·⋅][ \t]*10[ \t]*(?:\^|\*\*|[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺])|[ \t]*[×*·⋅][ \t]*[0-9]")
_TIMES = re.compile(r"[xX×](?![\w.]*\w)")
_PER_CENT = re.compile(r"[ \t\u00a0\u202f]*(?:[%％٪‰]|per[ -]?cent\b|pct\b)", re.IGNORECASE)
_TIME = re.compile(r"[ \t\u00a0]+(?:s|ms|us|ns|µs|μs|secs?|seconds?|mins|minutes?|hrs?|hours?)\b")
_RATE = re.compile(r"[ \t\u00a0]*[^\W\d_]*/(?:s|secs?|seconds?|its?|steps?|images?|img|min|h)\b")
_RANGE = re.compile(r"[ \t]*(?:-+>|=+>|→|⇒|\.\.+|…|[–—~])[ \t]*[0-9.]|[ \t]+(?:to|of)[ \t]+[0-9.]|-[0-9.]")
_LATE_EXPONENT = re.compile(r"[ \t]+[eE][+-]?[0-9]")
_FRACTION = re.compile(r"[ \t]+(?:[0-9]+[/⁄][0-9]|[/:÷][ \t]*[0-9]|[¼-¾⅐-⅞])")
_GROUP = re.compile(r"[ \u00a0\u2009\u202f'’`_][0-9]{3}(?![0-9])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]+[+-]?[0-9.]")
_JOINED = re.compile(r"([^\s\w]+)[+-]?\.?\w*[0-9]")
"""Signs that stand directly between a number and another one."""
_SEPARATORS = frozenset("|;()[]{}<>±\"',")
"""Signs of which such a run may consist: with another one the two are one thing, as in 12:30, 1/2 and 1'000."""


class MalformedNumberError(ValueError):
    """A result whose number is none, or not one number. The message says what is wrong and quotes the line."""


@dataclass(frozen=True, slots=True)
class ResultLine:
    """A line that a result was read from: its number from 1 on, and its text, cut to LINE_CHARACTERS."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class ScriptResults:
    """The results in an output.

    Attributes:
        count: how many lines hold a speed-up.
        largest: the largest speed-up; None where there is none.
        line: the line that `largest` was read from.
        scored: pairs of a speed-up and its score loss, those that no other pair is better than in both.
        malformed: what is wrong with the first malformed line; empty where none is.
        unread: the first line that says `speedup:` and no number behind it.
    """

    count: int = 0
    largest: float | None = None
    line: ResultLine | None = None
    largest_loss: float | None = None
    scored: tuple[tuple[float, float], ...] = ()
    malformed: str = ""
    unread: str = ""

    @classmethod
    def of(cls, text: str, pattern: str = "") -> ScriptResults:
        """Those of a text that is there whole."""
        reader = ScriptOutputReader(pattern)
        reader.feed(text.encode("utf-8", "surrogatepass"))
        return reader.finish()

    def fastest_within(self, tolerance: float) -> float | None:
        """The largest speed-up whose score loss is at most `tolerance`; None where none is."""
        return max((speedup for speedup, loss in self.scored if loss <= tolerance), default=None)


class ScriptOutputReader:
    """Reads an output, in whatever chunks it comes, with a memory that doesn't depend on its size."""

    def __init__(self, pattern: str = "") -> None:
        """Read by `pattern`, a regular expression that `pattern_problem` finds fine, or by `speedup: X`."""
        self._pattern = re.compile(pattern) if pattern else None
        self._needles = None if pattern else _NEEDLES
        self._rest = b""
        self._skip = 0
        self._skips_line = False
        self._line = 1
        self._counted_line = 0
        self._count = 0
        self._largest: tuple[float, float | None, ResultLine] | None = None
        self._scored: list[tuple[float, float]] = []
        self._lone_losses: list[float] = []
        self._malformed = ""
        self._unread = ""

    def feed(self, data: bytes) -> None:
        """Read on."""
        if self._skips_line:
            data = data[data.find(b"\n") :] if b"\n" in data else b""
            self._skips_line = not data
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if newline:
            self._lines(whole)
        if len(self._rest) > PIECE_BYTES and b"\r" in self._rest:
            # A progress bar may never end its line.
            shown, _, self._rest = self._rest.rpartition(b"\r")
            self._piece(shown, self._skip, len(shown))
            self._skip = 0
        while len(self._rest) > PIECE_BYTES + _OVERLAP_BYTES:
            piece = self._rest[: PIECE_BYTES + _OVERLAP_BYTES]
            self._piece(piece, self._skip, PIECE_BYTES)
            self._rest = self._rest[PIECE_BYTES - _BEFORE_BYTES :]
            self._skip = _BEFORE_BYTES

    def skip_lines(self, lines: int) -> None:
        """Count lines that are not the script's."""
        self._line += lines

    def skip_rest_of_line(self) -> None:
        """Read nothing up to the end of the line: its beginning is missing."""
        self._skips_line = True

    def add_problem(self, problem: str) -> None:
        """Say that results are missing: the others are not all, and the largest may not be the largest."""
        self._malformed = self._malformed or problem

    def discard_line(self) -> None:
        """Forget what was read of a line that has not ended: the rest of it is missing."""
        self._rest, self._skip = b"", 0

    def finish(self) -> ScriptResults:
        """What was read; the output has ended."""
        self._piece(self._rest, self._skip, len(self._rest))
        self.discard_line()
        speedup, loss, line = self._largest or (None, None, None)
        if self._count == 1 and speedup is not None and loss is None and len(self._lone_losses) == 1:
            # On a line of its own, but nobody else's it can be.
            loss = self._lone_losses[0]
            self._keep_pair(speedup, loss)
        return ScriptResults(self._count, speedup, line, loss, tuple(self._scored), self._malformed, self._unread)

    def _lines(self, whole: bytes) -> None:
        """Read lines that have ended, their last line's end left out; the first may have begun before."""
        at = 0
        while at <= len(whole):
            if self._needles is not None:
                # Most lines are not looked at one by one.
                found = self._needles.search(whole, at)
                if found is None:
                    self._line += whole.count(b"\n", at) + 1
                    self._skip = 0
                    return
                start = whole.rfind(b"\n", at, found.start()) + 1
                if start > at:
                    self._line += whole.count(b"\n", at, start)
                    self._skip, at = 0, start
            end = whole.find(b"\n", at)
            line = whole[at:] if end < 0 else whole[at:end]
            self._piece(line, self._skip, len(line))
            self._line += 1
            self._skip, at = 0, at + len(line) + 1

    def _piece(self, raw: bytes, start: int, end: int) -> None:
        """Read results that begin in `raw` from `start` on and before `end`."""
        if self._needles is not None and not self._needles.search(raw):
            return
        if start == 0 and end == len(raw):
            for part in parts_of(raw.decode("utf-8", "replace")):
                self._part(part, 0, len(part))
        else:
            # Of a line without end: nothing is taken out of it, so that places in it keep their meaning.
            before, within = raw[:start].decode("utf-8", "replace"), raw[start:end].decode("utf-8", "replace")
            text = before + within + raw[end:].decode("utf-8", "replace")
            self._part(text, len(before), len(before) + len(within))

    def _part(self, text: str, start: int, end: int) -> None:
        try:
            pairs = list(self._by_pattern(text) if self._pattern else _by_name(text))
        except MalformedNumberError as error:
            self._malformed = self._malformed or f"line {self._line} of its log: {error}: {quoted(text)}"
            return
        speedups = [value for name, at, value in pairs if name == SPEEDUP and start <= at < end]
        losses = [value for name, at, value in pairs if name == SCORE_LOSS and start <= at < end]
        numbers = [value for value in speedups if value is not None]
        if speedups and not numbers:
            self._unread = self._unread or f"line {self._line} of its log: {quoted(text)}"
        known = [value for value in losses if value is not None]
        if not numbers:
            self._lone_losses = (self._lone_losses + known)[:2]
            return
        if self._counted_line != self._line:
            self._counted_line = self._line
            self._count += 1
        loss = known[0] if len(known) == 1 and len(numbers) == 1 else None
        if self._largest is None or max(numbers) > self._largest[0]:
            self._largest = max(numbers), loss, ResultLine(self._line, text.strip()[:LINE_CHARACTERS])
        if loss is not None:
            self._keep_pair(numbers[0], loss)

    def _by_pattern(self, text: str) -> Iterator[tuple[str, int, float | None]]:
        assert self._pattern is not None
        groups = self._pattern.groupindex
        for match in self._pattern.finditer(text):
            for name in (SPEEDUP, SCORE_LOSS):
                group = groups.get(name, 1 if name == SPEEDUP and not groups else 0)
                if not group or match.group(group) is None:
                    continue
                value, stop = read_number(text, match.start(group), name)
                if value is None or stop != match.start(group) + len(match.group(group).rstrip(_BLANKS)):
                    raise MalformedNumberError(
                        f"the pattern found {quoted(match.group(group))} for its {_said(name)}, which is not a whole "
                        "number there"
                    )
                yield name, match.start(), value

    def _keep_pair(self, speedup: float, loss: float) -> None:
        if any(fast >= speedup and small <= loss for fast, small in self._scored):
            return
        kept = [(fast, small) for fast, small in self._scored if fast > speedup or small < loss]
        self._scored = [*kept, (speedup, loss)]


def parts_of(line: str) -> list[str]:
    """A line as a terminal would show its parts: no colours, cut where the cursor goes back or to another line."""
    if "\x1b" in line or "\x9b" in line:
        line = _STYLE.sub("", line)
        line = _TO_ANOTHER_LINE.sub("\n", line)
        line = _WITHIN_THE_LINE.sub("\v", line)
    return _BREAK.split(line)


def without_terminal_codes(text: str) -> str:
    """A text of many lines without colours, and with a line's end for each carriage return."""
    return "\n".join(part for line in text.split("\n") for part in parts_of(line))


def quoted(text: str) -> str:
    """`text` in quotes, escaped to printable ASCII and cut short."""
    short = text.strip()
    return ascii(short if len(short) <= LINE_CHARACTERS else short[:LINE_CHARACTERS] + "…")


def _by_name(text: str) -> Iterator[tuple[str, int, float | None]]:
    """Name, place and value of each result that the text names; the value is None where no number is behind it."""
    for name, word in _WORD.items():
        for match in word.finditer(text):
            if is_whole_word(text, match.start()):
                value, _ = read_number(text, match.end(), name)
                yield name, match.start(), value


def is_whole_word(text: str, at: int) -> bool:
    """Whether no longer name has the word that begins at `at` as its end."""
    if at == 0 or text[:at] == "\ufeff":  # A byte-order mark is no letter.
        return True
    before = text[at - 1]
    if _is_of_a_word(before):
        return False
    # A rule in front of a word is not a part of it ("- speedup", "...speedup"); an option's two dashes are.
    return not (before in _JOINS and at > 1 and (_is_of_a_word(text[at - 2]) or text[at - 2 : at] == "--"))


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


def read_number(text: str, at: int, name: str) -> tuple[float | None, int]:
    """The number that begins at `at` behind blanks, and where it ends; None where something else begins there.

    Raises:
        MalformedNumberError: a number begins there that is not finite, can't be what `name` says, or is only a part of
            what stands there.
    """
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    match = _NUMBER.match(text, at)
    if match is None:
        if _NO_NUMBER.match(text, at):
            raise MalformedNumberError(f"its {_said(name)} is not a finite number")
        if at < len(text) and text[at].isnumeric():
            raise MalformedNumberError(f"its {_said(name)} is not in the digits 0 to 9")
        return None, at
    if problem := _problem_behind(text, match):
        raise MalformedNumberError(f"its {_said(name)} {problem}")
    digits = match.group().lstrip("+-−–—").strip()
    value = float(digits)
    if match.group()[0] in "-−–—":
        value = -value
    _check(name, value)
    return value, match.end()


def _check(name: str, value: float) -> None:
    if name == SPEEDUP and not MIN_SPEEDUP <= value <= MAX_SPEEDUP:
        raise MalformedNumberError(f"its speed-up is {value:g}, and one is from {MIN_SPEEDUP:g} to {MAX_SPEEDUP:g}")
    if name == SCORE_LOSS and not -MAX_SCORE_LOSS <= value <= MAX_SCORE_LOSS:
        raise MalformedNumberError(f"its score loss is {value:g}, and one is from -1 to 1")


def _problem_behind(text: str, match: re.Match[str]) -> str:
    """Why the number that ends there is not all that stands there; empty where it is."""
    end = match.end()
    if end == len(text):
        return ""
    if _POWER_OF_TEN.match(text, end) or _LATE_EXPONENT.match(text, end):
        return "goes on behind its number"
    if _PER_CENT.match(text, end):
        return "is in per cent, and may be a part that was gained"
    if _TIME.match(text, end):
        return "is a time"
    if _RATE.match(text, end):
        return "is a rate"
    if _RANGE.match(text, end):
        return "is a range"
    number, has_fraction = match.group(), "." in match.group()
    if not has_fraction and _GROUP.match(text, end):
        return "has its digits in groups"
    if not has_fraction and _FRACTION.match(text, end):
        return "is a fraction"
    if _CONTROLS.match(text, end) or text[end] in "\x1b\x9b":
        return "has control characters between its digits"
    if _TIMES.match(text, end):
        return ""
    if _is_of_a_word(text[end]):
        return "has letters or other signs directly behind it"
    joined = _JOINED.match(text, end)
    if joined is None or joined[1] in ("+-", "+/-"):
        return ""
    if joined[1] == ",":
        # 2.31,0.01 are two numbers; 2,31 and 1.234,5 may be one.
        fraction = number.partition(".")[2]
        in_one = not has_fraction or (len(fraction) == 3 and re.match(r",\d+(?![\d.])", text[end:]))
        return "has a comma in it" if in_one else ""
    if set(joined[1]) <= _SEPARATORS and joined[1] not in ("'", '"'):
        return ""
    return "is a part of something longer"


def _said(name: str) -> str:
    return "speed-up" if name == SPEEDUP else "score loss"


def pattern_problem(pattern: str, sample: str = "") -> str:
    """What is wrong with a pattern of somebody's own, in a sentence that ends with what to do; empty where nothing is.

    With a sample of the script's output, a pattern that finds nothing in it, or something else than a number, is wrong.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression of Python's: {error}: mend it"
    unknown = [name for name in compiled.groupindex if name not in (SPEEDUP, SCORE_LOSS)]
    if unknown:
        return f"names the group {unknown[0]!r}: the groups that are read are {SPEEDUP} and {SCORE_LOSS}"
    if compiled.groupindex and SPEEDUP not in compiled.groupindex:
        return f"has no group that is named {SPEEDUP}: write (?P<{SPEEDUP}>…) around its number"
    if not compiled.groupindex and compiled.groups != 1:
        return rf"has {compiled.groups} groups: put one around the number, such as 'best: (\S+)'"
    if not sample:
        return ""
    found = ScriptResults.of(sample, pattern)
    if found.malformed:
        return f"doesn't read the sample: {found.malformed}: change one of the two"
    if found.largest is None:
        return f"finds nothing in the sample {quoted(sample)}: change one of the two"
    return ""
