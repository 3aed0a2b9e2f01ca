"""What makes an upper bound, and what doesn't."""

import pytest

from boundd.catalogue.outcomes import Isolation
from boundd.core.model.outcomes import Measurement
from boundd.results.bounds import Bound, BoundRules, bound_of


def measured(
    fastest: float | None,
    within: float | None,
    *,
    loss: float | None = 0.01,
    isolation: Isolation = Isolation.EXCLUSIVE,
    imported: float | None = None,
) -> Measurement:
    """A measurement with these figures."""
    best = {"parameters": {}, "speedup": fastest, "score_loss": loss}
    return Measurement(fastest, within, best, isolation, imported_upper_bound=imported)


def test_scored_bound_is_of_the_speedup_within_tolerance() -> None:
    """Where points were scored, the faster but lossy ones don't count."""
    assert bound_of(measured(4.0, 2.0), BoundRules(1.1)) == Bound(1.1 * 2.0, "max_speedup_within_tolerance")


def test_unscored_bound_is_of_the_fastest() -> None:
    """Where nothing was scored, the fastest point is all there is, and the bound says so."""
    assert bound_of(measured(4.0, None, loss=None), BoundRules(1.1)) == Bound(1.1 * 4.0, "max_speedup")


def test_scored_but_never_within_tolerance_has_no_bound() -> None:
    """A fastest point that is known to be too lossy makes no bound."""
    assert bound_of(measured(4.0, None, loss=0.3), BoundRules(1.1)) == Bound()


@pytest.mark.parametrize("isolation", [Isolation.CONTENDED, Isolation.UNKNOWN])
def test_only_exclusive_timing_makes_a_bound(isolation: Isolation) -> None:
    """A figure that was timed in company, or perhaps in company, is no bound."""
    assert bound_of(measured(4.0, 2.0, isolation=isolation), BoundRules(1.1)) == Bound(None, None)


def test_imported_bound_is_itself() -> None:
    """An imported figure is a bound already: no factor, and its unknown isolation doesn't matter."""
    imported = measured(None, None, isolation=Isolation.UNKNOWN, imported=2.42)
    assert bound_of(imported, BoundRules(1.1)) == Bound(2.42, "imported")


def test_no_measurement_no_bound() -> None:
    """A cell that was not measured has no bound."""
    assert bound_of(None, BoundRules(1.1)) == Bound()
    assert bound_of(measured(None, None, loss=None), BoundRules(1.1)) == Bound()


ACCEPTING = BoundRules(1.1, accept_unknown=True)


def test_unknown_makes_a_bound_where_that_is_accepted() -> None:
    """And is named as such; what was seen to be contended never does, and what was attested is as ever."""
    assert bound_of(measured(4.0, 2.0, isolation=Isolation.UNKNOWN), ACCEPTING) == Bound(
        1.1 * 2.0, "max_speedup_within_tolerance", of_unknown_isolation=True
    )
    assert bound_of(measured(4.0, None, loss=None, isolation=Isolation.UNKNOWN), ACCEPTING).of_unknown_isolation
    assert bound_of(measured(4.0, None, loss=0.3, isolation=Isolation.UNKNOWN), ACCEPTING) == Bound()
    assert bound_of(measured(4.0, 2.0, isolation=Isolation.CONTENDED), ACCEPTING) == Bound()
    assert not bound_of(measured(4.0, 2.0), ACCEPTING).of_unknown_isolation
