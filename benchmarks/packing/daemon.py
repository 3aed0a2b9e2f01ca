"""The real daemon with another planner: `python -m benchmarks.packing.daemon SPEC run --config …`.

All of `boundd.composition.run` is as it is (store, shims, probe, retries, causes, footprints): only the planner is the
policy's. SPEC is a file of JSON that names the policy; the clairvoyant is told the trace, so that it knows what is
true.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import boundd.composition.run
from benchmarks.packing.clairvoyant import Pace, candidates
from benchmarks.packing.policies import POLICIES
from benchmarks.packing.simulated import CLAIRVOYANT
from benchmarks.packing.starting import Policy
from benchmarks.packing.traces import TRACES, thinned
from boundd.service.daemon import Daemon


def policy_of(spec: dict[str, Any]) -> Policy:
    """The planner that a spec names."""
    if spec["policy"] != CLAIRVOYANT:
        return POLICIES[spec["policy"]]
    trace = thinned(TRACES[spec["trace"]](spec["seed"]), spec["every"])
    found = list(candidates(trace.world, trace.rules.batch_ladder, Pace(**spec["pace"])))
    return found[spec["candidate"]]


def main() -> None:
    """Run the daemon's own command line with the policy as its planner."""
    policy = policy_of(json.loads(Path(sys.argv.pop(1)).read_text()))
    boundd.composition.run.Daemon = partial(Daemon, planner=policy)  # type: ignore[attr-defined,misc]
    boundd.composition.run.main()


if __name__ == "__main__":
    main()
