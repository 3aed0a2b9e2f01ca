"""The environment a worker is given: the names of its variables, and their values, checked.

All of them are optional, because the worker is a tool of its own too. A variable that is set and empty counts
as not set, except `CUDA_VISIBLE_DEVICES`, where empty means "no GPU".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from boundd.protocol.strict_json import INT_MAX, Json, StrictJsonError, dumps, loads

CELL = "BOUNDD_CELL"
"""The cell's parameters, axes and constants, as canonical JSON."""
ATTEMPT = "BOUNDD_ATTEMPT"
"""The attempt's id."""
RESULTS = "BOUNDD_RESULTS"
"""The file to append result lines to."""
MEMORY_CAP_BYTES = "BOUNDD_MEMORY_CAP_BYTES"
"""What the caching allocator may reserve on the device."""
BATCH_SIZE = "BOUNDD_BATCH_SIZE"
"""The batch of this attempt, which the ladder may have lowered."""
LEASE = "BOUNDD_LEASE"
"""The folder of the device's lease files."""
MODEL = "BOUNDD_MODEL"
"""The config's [models."X"] entry of the cell's model as JSON: source, weights, dtype; paths are absolute."""
SCORER = "BOUNDD_SCORER"
"""The config's [scorer] table as JSON: source."""
EARLIER_RESULTS = "BOUNDD_EARLIER_RESULTS"
"""The results files of this cell's earlier attempts, the oldest first, as a JSON array of absolute paths."""
FETCHING = "BOUNDD_FETCHING"
"""A file that is there while the worker fetches its model: its deadline stands still meanwhile."""
FETCH_TIMEOUT_S = "BOUNDD_FETCH_TIMEOUT_S"
"""For how many seconds at most it stands still."""
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""The UUID of the device to work on; empty for the CPU."""
CUDA_DEVICE_ORDER = "CUDA_DEVICE_ORDER"
PCI_BUS_ID = "PCI_BUS_ID"

VARIABLES = (
    CELL,
    ATTEMPT,
    RESULTS,
    MEMORY_CAP_BYTES,
    BATCH_SIZE,
    LEASE,
    MODEL,
    SCORER,
    EARLIER_RESULTS,
    FETCHING,
    FETCH_TIMEOUT_S,
    CUDA_VISIBLE_DEVICES,
)


@dataclass(frozen=True, kw_only=True)
class WorkerEnvironment:
    """What the variables say; None where one is not set."""

    cell: Mapping[str, Json] | None = None
    attempt: str | None = None
    results: Path | None = None
    memory_cap_bytes: int | None = None
    batch_size: int | None = None
    lease_folder: Path | None = None
    model: Mapping[str, Json] | None = None
    scorer: Mapping[str, Json] | None = None
    earlier_results: tuple[Path, ...] = ()
    fetching: Path | None = None
    fetch_timeout_s: int | None = None
    visible_devices: str | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> WorkerEnvironment:
        """Read the variables from `environ` (usually `os.environ`).

        Raises:
            ValueError: when a variable holds what it can't mean; the message names it.
        """
        return cls(
            cell=_object(environ, CELL),
            attempt=environ.get(ATTEMPT) or None,
            results=_path(environ, RESULTS),
            memory_cap_bytes=_positive(environ, MEMORY_CAP_BYTES),
            batch_size=_positive(environ, BATCH_SIZE),
            lease_folder=_path(environ, LEASE),
            model=_object(environ, MODEL),
            scorer=_object(environ, SCORER),
            earlier_results=_paths(environ, EARLIER_RESULTS),
            fetching=_path(environ, FETCHING),
            fetch_timeout_s=_positive(environ, FETCH_TIMEOUT_S),
            visible_devices=environ.get(CUDA_VISIBLE_DEVICES),
        )

    def to_environ(self) -> dict[str, str]:
        """The variables to add to a worker's environment; `from_environ` reads them back to an equal
        value."""
        values: dict[str, str | None] = {
            CELL: None if self.cell is None else dumps(self.cell),
            ATTEMPT: self.attempt,
            RESULTS: None if self.results is None else str(self.results),
            MEMORY_CAP_BYTES: None if self.memory_cap_bytes is None else str(self.memory_cap_bytes),
            BATCH_SIZE: None if self.batch_size is None else str(self.batch_size),
            LEASE: None if self.lease_folder is None else str(self.lease_folder),
            MODEL: None if self.model is None else dumps(self.model),
            SCORER: None if self.scorer is None else dumps(self.scorer),
            EARLIER_RESULTS: dumps([str(path) for path in self.earlier_results]) if self.earlier_results else None,
            FETCHING: None if self.fetching is None else str(self.fetching),
            FETCH_TIMEOUT_S: None if self.fetch_timeout_s is None else str(self.fetch_timeout_s),
            CUDA_VISIBLE_DEVICES: self.visible_devices,
        }
        if self.visible_devices is not None:
            # Without it CUDA orders by speed, and the same index means another device than NVML's.
            values[CUDA_DEVICE_ORDER] = PCI_BUS_ID
        return {name: value for name, value in values.items() if value is not None}


def _json(environ: Mapping[str, str], name: str) -> Json:
    text = environ.get(name)
    if not text:
        return None
    try:
        return loads(text)
    except StrictJsonError as error:
        raise ValueError(f"{name}: {error}") from None


def _object(environ: Mapping[str, str], name: str) -> Mapping[str, Json] | None:
    value = _json(environ, name)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name}: must be a JSON object, not {environ[name][:60]!a}")
    return value


def _paths(environ: Mapping[str, str], name: str) -> tuple[Path, ...]:
    value = _json(environ, name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(path, str) and path.startswith("/") for path in value):
        raise ValueError(f"{name}: must be a JSON array of absolute paths, not {environ[name][:60]!a}")
    return tuple(Path(str(path)) for path in value)


def _positive(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    # int() alone would take '1_000', ' 7 ' and other scripts' digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and 0 < int(text) <= INT_MAX):
        raise ValueError(f"{name}: must be an integer above 0, not {text[:60]!a}")
    return int(text)


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(name)
    if not text:
        return None
    path = Path(text)
    if not path.is_absolute():
        raise ValueError(f"{name}: must be an absolute path, not {text[:200]!a}")
    return path
