"""Whether a result was measured with other versions than today's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from boundd.core.model.attempts import CellRecord

VersionOf = Callable[[str], str | None]
"""The version that a worker of today would have of a library; None where nobody knows."""
NO_LIBRARIES = frozenset({"python", "device", "weights_revision"})
"""What else a fingerprint says: of these, today's value is known to a worker alone."""


def is_stale(record: CellRecord, version_of: VersionOf) -> bool:
    """True where the result's fingerprint names a library whose version today is another.

    A result without a fingerprint (an imported one, one of somebody's own script) can't be told to be stale.
    """
    fingerprint = record.measurement.details.get("fingerprint") if record.measurement is not None else None
    if not isinstance(fingerprint, Mapping):
        return False
    measured = {name: then for name, then in fingerprint.items() if then is not None and name not in NO_LIBRARIES}
    return any(version_of(name) not in (None, then) for name, then in measured.items())
