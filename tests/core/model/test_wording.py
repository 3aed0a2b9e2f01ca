"""Every reason there can be has words, and no words but these.

Seen to fail: with a kind of refusal left out of `wording._REFUSALS`, with a rule left out of `_RETRIES`, and with a
size written in bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.core.model import wording
from boundd.core.model.memory_evidence import MemoryEvidence
from boundd.core.model.quarantines import QuarantineCause
from boundd.core.model.reasons import (
    DiskShort,
    HasEnded,
    NoRoom,
    PlacementReason,
    Refusal,
    RetryReason,
    Runs,
    Wait,
    as_data,
)
from boundd.core.model.sources import DurationSource, HostSource, MemorySource, Source
from boundd.text import count, size

WORDS = st.text("abc/", min_size=1, max_size=8)
NUMBERS = st.integers(0, 2**48)
SAID = {
    **dict.fromkeys(get_args(Refusal), wording.refusal),
    **dict.fromkeys(get_args(Wait), wording.wait),
    **dict.fromkeys(get_args(QuarantineCause), wording.quarantine),
    **dict.fromkeys(get_args(MemoryEvidence), wording.evidence),
    PlacementReason: wording.placement_reason,
    RetryReason: wording.retry,
    Source: wording.source,
    HasEnded: wording.has_ended,
    Runs: lambda found: wording.runs(found, None),
    NoRoom: wording.no_room,
    DiskShort: wording.disk_short,
}
"""Each type of reason, and what turns it into words."""


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type with every number known, and text without digits."""
    parts = [part for part in get_args(kind) if part not in (type(None), ...)]
    if get_origin(kind) is Literal:
        return st.sampled_from(parts)
    if get_origin(kind) is tuple:
        return st.lists(values_of(parts[0]), min_size=1, max_size=3).map(tuple)
    if parts:
        return st.one_of([values_of(part) for part in parts])
    if is_dataclass(kind):
        types = get_type_hints(kind)
        return st.builds(kind, **{field.name: values_of(types[field.name]) for field in fields(kind)})
    plain = {int: NUMBERS, str: WORDS, float: st.floats(0, 1e6)}
    return plain[kind] if kind in plain else st.from_type(kind)


@pytest.mark.parametrize("kind", SAID, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_reason_has_words(kind: type, data: st.DataObject) -> None:
    """Of any numbers: a line without a size in bytes, a plural in brackets or a name that nobody filled in."""
    reason = data.draw(values_of(kind))
    text = SAID[kind](reason)
    assert text
    assert text == text.strip()
    assert "(s)" not in text
    assert "None" not in text
    assert "{" not in text
    if kind not in (Runs, HasEnded):
        json.dumps(as_data(reason), allow_nan=False)


@pytest.mark.parametrize("kind", [MemorySource, HostSource, DurationSource])
def test_every_source_has_words(kind: Any) -> None:
    """Each member, not only those that are drawn."""
    assert all(wording.source(Source(each, 2, 3)) for each in kind)


def test_kinds_are_told_apart() -> None:
    """No two sources have one name; nor have two reasons that may stand in the same place."""
    assert len({*MemorySource, *HostSource, *DurationSource}) == sum(
        map(len, (MemorySource, HostSource, DurationSource))
    )
    for union in (Refusal, Wait, QuarantineCause, MemoryEvidence):
        names = Counter(name for kind in get_args(union) for name in names_of(kind))
        assert not [name for name, number in names.items() if number > 1], union


def names_of(kind: Any) -> list[str]:
    """The names under which outside readers see a type of reason."""
    return (
        [each.value for each in kind] if hasattr(kind, "__members__") else [kind.__dataclass_fields__["kind"].default]
    )


def test_documented() -> None:
    """docs/http.md names each kind that an answer may have."""
    text = (Path(__file__).parents[3] / "docs" / "http.md").read_text()
    unions = (Refusal, Wait, QuarantineCause, MemoryEvidence)
    names = {name for union in unions for kind in get_args(union) for name in names_of(kind)}
    missing = [name for name in names if f"`{name}`" not in text]
    assert not missing


@given(NUMBERS)
def test_sizes(size_bytes: int) -> None:
    """One digit of a GiB, never 0.0; what is less is in a smaller unit; never more than five digits."""
    text = size(size_bytes)
    assert re.fullmatch(r"\d+\.\d GiB|\d+ MiB|\d+ bytes", text)
    assert not text.startswith("0.0")
    assert (text == "0 bytes") == (size_bytes == 0)


def test_counts() -> None:
    """One has no plural."""
    assert [count(number, "attempt") for number in (0, 1, 2, 1200)] == [
        "0 attempts",
        "1 attempt",
        "2 attempts",
        "1,200 attempts",
    ]
