"""Whether a result was measured with other versions than today's."""

from __future__ import annotations

from collections.abc import Mapping

from boundd.core.model.attempts import CellRecord


def is_stale(record: CellRecord, today: Mapping[str, str]) -> bool:
    """True where the result's fingerprint names a library whose version today is another.

    A result without a fingerprint (an imported one, one of somebody's own script) can't be told to be stale.
    """
    fingerprint = record.measurement.details.get("fingerprint") if record.measurement is not None else None
    if not isinstance(fingerprint, Mapping):
        return False
    return any(fingerprint.get(name) not in (None, version) for name, version in today.items())
