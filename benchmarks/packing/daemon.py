"""The real daemon with another planner: `python -m benchmarks.packing.daemon SPEC run --config …`.

All of `boundd.composition.run` is as it is (store, shims, probe, retries, causes, footprints): only `Run.planner` is
the policy's. SPEC is a file of JSON that names the policy; the clairvoyant is told the trace, so that it knows what is
true.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import boundd.composition.run
from benchmarks.packing.clairvoyant import Pace, candidates
from benchmarks.packing.policies import POLICIES
from benchmarks.packing.simulated import CLAIRVOYANT
from benchmarks.packing.starting import Policy
from benchmarks.packing.traces import TRACES, thinned
from boundd.composition.wiring import make_run
from boundd.config import Settings
from boundd.launch.local import LocalLauncher
from boundd.service.daemon import Run


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

    def with_policy(settings: Settings, launcher: LocalLauncher) -> Run:
        return replace(make_run(settings, launcher), planner=policy)

    boundd.composition.run.make_run = with_policy  # type: ignore[attr-defined]
    boundd.composition.run.main()


if __name__ == "__main__":
    main()
