"""`python -m benchmarks.packing`: the five traces, simulated and then with real processes."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.machine import command_line, describe
from benchmarks.packing.policies import POLICIES
from benchmarks.packing.real import EVERY, SHORTEST_S, Job, compiled, real_scores
from benchmarks.packing.simulated import CLAIRVOYANT, OURS, Score, scores
from benchmarks.packing.traces import TRACES, thinned

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


def simulated(names: list[str], seeds: range, *, each: bool, others: bool) -> None:
    """The first half: every cell of every trace, on each of the seeds."""
    for name in names:
        runs = []
        for seed in seeds:
            trace = TRACES[name](seed)
            runs.append(scores(trace, seed, others=others))
            if each:
                print(f"  seed {seed}: ours {_ratio(runs[-1]):.3f} of the clairvoyant, {_ours(runs[-1])}", flush=True)
        head = f"{trace.name}, simulated, {len(seeds)} seeds from {seeds.start}"
        print(head, *table(runs), "", sep="\n", flush=True)


def real(names: list[str], seeds: range, shortest_s: float, every: int | None, *, others: bool) -> None:
    """The second half: some cells of every trace, with time compressed so that the shortest takes `shortest_s`."""
    policies = tuple(POLICIES) if others else ()
    with tempfile.TemporaryDirectory(prefix="boundd-packing-") as folder:
        bench = compiled(Path(folder))
        for name in names:
            runs, beside, took = [], [], {}
            for seed in seeds:
                job = Job.of(name, seed, every or EVERY[name], shortest_s)
                found = real_scores(bench, job, policies)
                runs.append(found.scores)
                beside.append(_ratio(scores(thinned(TRACES[name](seed), job.every), seed, others=False)))
                took = {policy: took.get(policy, 0.0) + seconds for policy, seconds in found.took_s.items()}
            whole = f"{len(job.trace.world.cells)} of {len(TRACES[name](seeds.start).world.cells)} cells"
            print(f"{job.trace.name}, real processes, {len(seeds)} seed(s) from {seeds.start}, {whole}, ", end="")
            print(f"a second is {1 / job.second_s:.0f} of the trace's")
            print(*table(runs), sep="\n")
            print(f"ours, simulated on the same cells: {statistics.median(beside):.2f} ({max(beside):.2f})")
            print(
                "real seconds: " + ", ".join(f"{policy} {seconds:.1f}" for policy, seconds in took.items()), flush=True
            )
            print(flush=True)


def _ours(run: list[Score]) -> Score:
    return next(score for score in run if score.policy == OURS)


def _ratio(run: list[Score]) -> float:
    return _ours(run).makespan_s / next(score.makespan_s for score in run if score.policy == CLAIRVOYANT)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("simulated", "real"), help="one half of it")
    parser.add_argument("--seeds", type=int, default=10, help="worlds of each trace, simulated")
    parser.add_argument("--real-seeds", type=int, default=1, help="worlds of each trace, with real processes")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--trace", action="append", choices=sorted(TRACES), help="only these")
    parser.add_argument("--only-ours", action="store_true", help="no policies but ours and the clairvoyant")
    parser.add_argument("--each", action="store_true", help="a line for each seed too, simulated")
    parser.add_argument(
        "--shortest", type=float, default=SHORTEST_S, metavar="S", help="what the shortest cell takes for real"
    )
    parser.add_argument(
        "--every", type=int, metavar="N", help=f"run every Nth cell for real; by default {', '.join(_defaults())}"
    )
    options = parser.parse_args()
    names = options.trace or list(TRACES)
    print(f"$ {command_line()}\n{describe()}\n", flush=True)
    first = options.first_seed
    if options.only != "real":
        simulated(names, range(first, first + options.seeds), each=options.each, others=not options.only_ours)
    if options.only != "simulated":
        seeds = range(first, first + options.real_seeds)
        real(names, seeds, options.shortest, options.every, others=not options.only_ours)


def _defaults() -> list[str]:
    return [f"{every} of {name}" for name, every in EVERY.items()]


if __name__ == "__main__":
    main()
