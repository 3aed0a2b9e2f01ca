"""`python -m benchmarks.packing`: the five traces, simulated."""

from __future__ import annotations

import argparse
import statistics

from benchmarks.machine import command_line, describe
from benchmarks.packing.simulated import CLAIRVOYANT, OURS, Score, scores
from benchmarks.packing.traces import TRACES

HEAD = (
    "policy         makespan/bound  of clairvoyant (worst)  out of memory  neighbours'  needless cuts  company"
    "  bug retries  not done"
)


def table(runs: list[list[Score]]) -> list[str]:
    """A line a policy: medians of the makespans over the seeds, sums of the counts."""
    lines = [HEAD]
    best = [next(score.makespan_s for score in run if score.policy == CLAIRVOYANT) for run in runs]
    for place, policy in enumerate(score.policy for score in runs[0]):
        mine = [run[place] for run in runs]
        ratios = [score.makespan_s / least for score, least in zip(mine, best, strict=True)]
        over = statistics.median(score.over_bound for score in mine)
        counts = (
            sum(score.out_of_memory for score in mine),
            sum(score.neighbour_caused for score in mine),
            sum(score.needless_cuts for score in mine),
            sum(score.company for score in mine),
            max(score.bug_retries for score in mine),
            sum(score.not_done for score in mine),
        )
        widths = (14, 12, 14, 8, 12, 9)
        told = " ".join(f"{count:{width}}" for count, width in zip(counts, widths, strict=True))
        lines.append(f"{policy:14} {over:14.2f}  {statistics.median(ratios):14.2f} ({max(ratios):.2f}) {told}")
    return lines


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="worlds of each trace")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--trace", action="append", choices=sorted(TRACES), help="only these")
    parser.add_argument("--only-ours", action="store_true", help="no policies but ours and the clairvoyant")
    parser.add_argument("--each", action="store_true", help="a line for each seed too")
    options = parser.parse_args()
    print(f"$ {command_line()}\n{describe()}\n", flush=True)
    for name in options.trace or TRACES:
        runs = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            trace = TRACES[name](seed)
            runs.append(scores(trace, seed, others=not options.only_ours))
            if options.each:
                by = {score.policy: score for score in runs[-1]}
                ratio = by[OURS].makespan_s / by[CLAIRVOYANT].makespan_s
                print(f"  seed {seed}: ours {ratio:.3f} of the clairvoyant, {by[OURS]}", flush=True)
        print(f"{trace.name}, {options.seeds} seeds from {options.first_seed}", *table(runs), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
