"""Reasons come back from the store as they were kept.

Seen to fail: with a cause left out of `QuarantineCause`, and with a field that JSON can't tell from another.
"""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.core.model.memory_evidence import MemoryEvidence
from boundd.core.model.quarantines import ByOperator, QuarantineCause
from boundd.store import reasons

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(cause=st.from_type(QuarantineCause), evidence=st.from_type(MemoryEvidence))
def test_round_trip(cause: QuarantineCause, evidence: MemoryEvidence) -> None:
    """Numbers and text, whatever they are."""
    try:
        kept, told = reasons.dump(cause), reasons.dump(evidence)
    except ValueError as error:
        assert "Out of range float" in str(error)  # noqa: PT017 - NaN is refused before a transaction begins
        return
    assert reasons.dump(reasons.cause_of(kept)) == kept
    assert reasons.dump(reasons.evidence_of(told)) == told


@given(reason=TEXT)
def test_a_persons_text_is_no_data(reason: str) -> None:
    """Whatever a person types is a reason, and never another cause."""
    assert reasons.cause_of(reasons.dump(ByOperator(reason))) == ByOperator(reason)


def test_text_that_looks_like_a_cause() -> None:
    """Nor is it one where it is JSON itself."""
    inner = reasons.dump(ByOperator("x")).replace("operator", "unkillable_attempt")
    assert reasons.cause_of(reasons.dump(ByOperator(inner))) == ByOperator(inner)


def test_a_lone_surrogate_doesnt_stop_the_store() -> None:
    """It becomes a question mark, as in every text of the store."""
    assert reasons.cause_of(reasons.dump(ByOperator("a\ud800b"))) == ByOperator("a?b")


@pytest.mark.parametrize("text", ["", "the fan is loud", "{}", '{"kind":"new"}', '{"kind":"operator"}', "[]"])
def test_what_is_no_cause_is_refused(text: str) -> None:
    """A row that this version doesn't know is an error, and never a device in service."""
    with pytest.raises(ValueError, match="validation error"):
        reasons.cause_of(text)


def test_every_cause_is_known() -> None:
    """By its kind."""
    assert {kind.__dataclass_fields__["kind"].default for kind in get_args(QuarantineCause)} == {
        "operator",
        "cells_died",
        "driver_fault",
        "unkillable_attempt",
    }
