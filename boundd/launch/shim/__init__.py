"""The shim: a small process of its own that owns one attempt, whether or not a daemon is there.

The zygote (zygote.py) forks one for each attempt, which then does what `spec.json` in the attempt's folder says. It
imports nothing but the standard library, and of that as little as it can, because one of it is alive for each attempt.
It leaves `shim.json` (who it is), `output.log` (what the worker said, capped) and `outcome.json` (how it went). See
docs/launch.md for the files.

Being a subreaper, it inherits whatever the worker forks and forgets; "it has no child left" therefore means that
nothing of the attempt is left.

The zygote imports this package by its folder, as `shim`, and the daemon as `boundd.launch.shim`: imports in it are
relative, and of nothing else of boundd.
"""

from .attempt import Shim, run_attempt
from .files import (
    GAVE_UP,
    GAVE_UP_MESSAGE,
    KNOWN_SPEC_FORMATS,
    LOCK,
    LOG,
    OUTCOME,
    OUTCOME_FORMAT,
    READY,
    SHIM,
    SHIM_FORMAT,
    SPEC,
    SPEC_FORMAT,
    START_FAILURE_BYTES,
    GaveUpError,
    check_of,
    checked,
    parse_start_failure,
    read_spec,
    start_failure,
    write_atomically,
)
from .identity import (
    Stat,
    all_stats,
    boot_id,
    descendants,
    is_below,
    open_verified,
    signal_verified,
    stat_of,
)
from .kernel import kill_cgroup, machine_oom_kills, now_s, read_keyed, read_number, remove_cgroup, write_file
from .lease import LeaseWatch, lease_locks
from .log import CappedLog

__all__ = [
    "GAVE_UP",
    "GAVE_UP_MESSAGE",
    "KNOWN_SPEC_FORMATS",
    "LOCK",
    "LOG",
    "OUTCOME",
    "OUTCOME_FORMAT",
    "READY",
    "SHIM",
    "SHIM_FORMAT",
    "SPEC",
    "SPEC_FORMAT",
    "START_FAILURE_BYTES",
    "CappedLog",
    "GaveUpError",
    "LeaseWatch",
    "Shim",
    "Stat",
    "all_stats",
    "boot_id",
    "check_of",
    "checked",
    "descendants",
    "is_below",
    "kill_cgroup",
    "lease_locks",
    "machine_oom_kills",
    "now_s",
    "open_verified",
    "parse_start_failure",
    "read_keyed",
    "read_number",
    "read_spec",
    "remove_cgroup",
    "run_attempt",
    "signal_verified",
    "start_failure",
    "stat_of",
    "write_atomically",
    "write_file",
]
