"""Result lines: strict reading, faithful writing, cutting at any chunk."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.catalogue.outcomes import WORKER_ERROR_KINDS, ErrorKind, Isolation
from boundd.protocol.lines import (
    MAX_LINE_BYTES,
    Error,
    Line,
    LineSplitter,
    MalformedLineError,
    Memory,
    Point,
    Progress,
    Result,
    ResultsWriter,
    encode,
    parse_line,
)
from boundd.protocol.strict_json import INT_MAX

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_counts = st.integers(0, INT_MAX)
_speedups = st.floats(min_value=1e-6, max_value=1e6)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), INT_MAX) | _numbers | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_objects = st.dictionaries(_text, _json, max_size=3)
_extra = st.dictionaries(_text.map("x_".__add__), _json, max_size=3)
_isolation = st.sampled_from(Isolation)
_best = st.none() | st.fixed_dictionaries(
    {"parameters": _objects, "speedup": _speedups, "score_loss": st.none() | _numbers}
)

lines: st.SearchStrategy[Line] = st.one_of(
    st.builds(Progress, done=_counts, total=_counts, extra=_extra),
    st.builds(
        Point,
        parameters=_objects,
        speedup=_speedups,
        score_loss=st.none() | _numbers,
        isolation=_isolation,
        extra=_extra,
    ),
    st.builds(Memory, peak_allocated_bytes=_counts, peak_reserved_bytes=_counts, extra=_extra),
    st.builds(
        Result,
        max_speedup=st.none() | _speedups,
        max_speedup_within_tolerance=st.none() | _speedups,
        best=_best,
        isolation=_isolation,
        extra=_extra,
    ),
    st.builds(
        Error,
        error=st.sampled_from(WORKER_ERROR_KINDS),
        message=_text,
        phase=st.none() | _text,
        requested_bytes=st.none() | _counts,
        free_bytes=st.none() | _counts,
        extra=_extra,
    ),
)


@given(lines)
def test_what_is_encoded_is_read_back(line: Line) -> None:
    """Any line survives the trip, as text and as bytes, in one line of ASCII."""
    text = encode(line)
    assert "\n" not in text
    assert text.isascii()
    assert parse_line(text) == line
    assert parse_line(text.encode() + b"\r\n") == line


@given(st.binary(max_size=200) | st.text(max_size=200) | _json.map(json.dumps))
def test_anything_else_is_malformed_and_nothing_else(text: bytes | str) -> None:
    """No input makes the parser raise anything but MalformedLineError, and its message is printable ASCII."""
    try:
        parse_line(text)
    except MalformedLineError as error:
        message = str(error)
    else:
        return
    assert message.replace("…", "").isascii()
    assert message.isprintable()
    assert len(message) < 1000


GOOD_POINT = {"type": "point", "parameters": {}, "speedup": 2.31, "score_loss": 0.004, "isolation": "exclusive"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"speedup": 0}, "'speedup' must be above 0"),
        ({"speedup": -1.5}, "above 0"),
        ({"speedup": True}, "must be a number"),
        ({"speedup": "2.31"}, "must be a number"),
        ({"speedup": None}, "must be a number"),
        ({"score_loss": "0"}, "'score_loss' must be a number"),
        ({"score_loss": False}, "'score_loss' must be a number"),
        ({"parameters": []}, "'parameters' must be an object"),
        ({"isolation": "alone"}, "'isolation' must be one of exclusive, contended, unknown"),
        ({"isolation": ["exclusive"]}, "'isolation' must be one of"),
        ({"type": "points"}, "'type' must be one of progress, point"),
        ({"type": None}, "'type' must be one of"),
        ({"type": {}}, "'type' must be one of"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], reason: str) -> None:
    """The error names the field, says what it must be, and quotes the line."""
    with pytest.raises(MalformedLineError, match=reason) as caught:
        parse_line(json.dumps(GOOD_POINT | change))
    assert '"type"' in str(caught.value)


@pytest.mark.parametrize("name", ["type", "parameters", "speedup"])
def test_a_missing_field_is_named(name: str) -> None:
    """A field that must be there and is not is named."""
    line = {key: value for key, value in GOOD_POINT.items() if key != name}
    with pytest.raises(MalformedLineError, match=f"'{name}' is missing"):
        parse_line(json.dumps(line))


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "progress", "done": true, "total": 3}',
        '{"type": "progress", "done": 1.0, "total": 3}',
        '{"type": "progress", "done": -1, "total": 3}',
        '{"type": "progress", "done": 1, "total": 9223372036854775808}',
        '{"type": "memory", "peak_allocated_bytes": 1}',
        '{"type": "result"}',
        '{"type": "result", "max_speedup": 0}',
        '{"type": "result", "max_speedup": 2, "best": []}',
        '{"type": "result", "max_speedup": 2, "best": {"speedup": 2}}',
        '{"type": "result", "max_speedup": 2, "best": {"speedup": 2, "parameters": 1}}',
        '{"type": "result", "max_speedup": 2, "best": {"speedup": 2, "parameters": {}, "score_loss": "x"}}',
        '{"type": "error", "error": "oom", "message": "x"}',
        '{"type": "error", "error": "other", "message": null}',
        '{"type": "error", "error": "other", "message": "x", "free_bytes": -1}',
        "",
        "  \n",
        "[]",
        "null",
        b"\xff\xfe",
    ],
)
def test_bad_lines_are_malformed(text: str | bytes) -> None:
    """Wrong types, wrong ranges, missing fields and non-objects are all refused."""
    with pytest.raises(MalformedLineError):
        parse_line(text)


def test_what_is_not_said_is_not_attested() -> None:
    """A worker that leaves isolation, score and best out gets 'unknown' and None, never a kinder guess."""
    point = parse_line('{"type": "point", "parameters": {}, "speedup": 2}')
    assert point == Point(parameters={}, speedup=2.0, score_loss=None, isolation=Isolation.UNKNOWN)
    result = parse_line('{"type": "result", "max_speedup": null}')
    assert result == Result(max_speedup=None, max_speedup_within_tolerance=None, best=None, isolation=Isolation.UNKNOWN)


def test_unknown_keys_are_kept() -> None:
    """What a newer worker adds is in extra."""
    line = parse_line('{"type": "progress", "done": 1, "total": 2, "phase": "baseline"}')
    assert line.extra == {"phase": "baseline"}


def test_a_long_line_is_refused_and_quoted_short() -> None:
    """A line past the cap is malformed, and the message stays short."""
    with pytest.raises(MalformedLineError, match="more than") as caught:
        parse_line(b"x" * (MAX_LINE_BYTES + 1))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "line",
    [
        Progress(done=-1, total=1),
        Point(parameters={}, speedup=float("nan"), score_loss=None, isolation=Isolation.UNKNOWN),
        Point(parameters={}, speedup=1.0, score_loss=None, isolation=Isolation.UNKNOWN, extra={"type": "x"}),
        Point(parameters={}, speedup=1.0, score_loss=None, isolation=Isolation.UNKNOWN, extra={"speedup": 9.0}),
        Error(error=ErrorKind.OTHER, message="\udc80"),
    ],
)
def test_nothing_malformed_is_encoded(line: Line) -> None:
    """What the reader would refuse is refused where it is written."""
    with pytest.raises(MalformedLineError):
        encode(line)


@given(st.lists(st.binary(max_size=12).map(lambda piece: piece.replace(b"\n", b"")), max_size=6), st.data())
def test_lines_come_out_the_same_however_they_are_chunked(pieces: list[bytes], data: st.DataObject) -> None:
    """Cutting the stream anywhere changes nothing; blank lines are dropped; the tail waits."""
    stream = b"\n".join(pieces)
    splitter = LineSplitter()
    got = []
    at = 0
    while at < len(stream):
        size = data.draw(st.integers(1, 8))
        got += splitter.feed(stream[at : at + size])
        at += size
    *ended, tail = stream.split(b"\n")
    assert got == [piece for piece in ended if piece.strip()]
    assert splitter.rest == tail


def test_an_endless_line_takes_bounded_memory() -> None:
    """A line without an end is cut just past the cap, comes out once, and the next line is whole."""
    splitter = LineSplitter(max_line_bytes=10)
    for _ in range(100):
        assert splitter.feed(b"x" * 7) == []
        assert len(splitter.rest) <= 11
    assert splitter.feed(b"\nnext\n") == [b"x" * 11, b"next"]


def test_the_writer_appends_whole_lines(tmp_path: Path) -> None:
    """Two writers of one file append whole lines, the file is private to its owner's group rules, both can
    close twice."""
    path = tmp_path / "results.jsonl"
    progress = Progress(done=1, total=2)
    with ResultsWriter(path) as first, ResultsWriter(path) as second:
        first.write(progress)
        second.write(Point(parameters={"a": 1}, speedup=2.0, score_loss=None, isolation=Isolation.UNKNOWN))
        first.write(Error(error=ErrorKind.OTHER, message="gone"))
    first.close()
    kept = LineSplitter().feed(path.read_bytes())
    assert [type(parse_line(line)) for line in kept] == [Progress, Point, Error]
    assert not stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH


def test_a_refused_line_leaves_the_file_alone(tmp_path: Path) -> None:
    """A line that can't be encoded writes nothing at all."""
    path = tmp_path / "results.jsonl"
    with ResultsWriter(path) as writer, pytest.raises(MalformedLineError):
        writer.write(Progress(done=-1, total=0))
    assert path.read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error() -> None:
    """ENOSPC reaches the caller; it is never taken for written."""
    with ResultsWriter(Path("/dev/full")) as writer, pytest.raises(OSError, match=os.strerror(28)):
        writer.write(Progress(done=0, total=1))
