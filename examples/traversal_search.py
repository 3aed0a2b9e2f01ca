"""An example of somebody's own search script, for `result = "stdout"` in a config of boundd.

It stands for a script that boundd knows nothing about: it takes the old options, does its own work, and
prints a line `speedup: x.xx` for each point it measured; boundd takes the largest. It uses no diffusion model
and no GPU, and says so: what it measures for real is how much faster a made-up denoising loop in plain Python
gets when it recomputes its expensive half only every few steps, as feature caching does. Give boundd your own
script instead.

    python examples/traversal_search.py --pipe SD1.5 --sched DDIM --steps 20 --search_targets deepcache
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence

INTERVALS = (2, 3, 5)
REPEATS = 3
DEEP_WORK = 400
SHALLOW_WORK = 100


def features(value: float, work: int) -> float:
    """Something that takes time in proportion to `work` and depends on `value`."""
    for index in range(1, work + 1):
        value += math.sin(value * index) / index
    return value


def denoise(steps: int, samples: int, interval: int) -> float:
    """A loop of `steps` for each sample, whose deep features are computed every `interval` steps and kept in
    between."""
    total = 0.0
    for sample in range(samples):
        value = deep = float(sample)
        for step in range(steps):
            if step % interval == 0:
                deep = features(value, DEEP_WORK)
            value = 0.5 * (features(value, SHALLOW_WORK) + deep)
        total += value
    return total


def seconds(steps: int, samples: int, interval: int) -> float:
    """The median time of a few runs."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        denoise(steps, samples, interval)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the loop with and without its cache, and print each speed-up."""
    parser = argparse.ArgumentParser(description="an example script: it times a loop in plain Python, and no model")
    parser.add_argument("--num_samples", type=int, default=32)
    parser.add_argument("--search_targets", nargs="+", default=["deepcache"])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--pipe", default="SD1.5")
    parser.add_argument("--sched", default="DDIM")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(arguments)
    what = f"{options.pipe} {options.sched} {options.steps} {'+'.join(options.search_targets)}"
    print(f"asked for {what}; this example times a loop in plain Python instead, and no diffusion model")
    baseline_s = seconds(options.steps, options.num_samples, interval=1)
    for interval in INTERVALS:
        accelerated_s = seconds(options.steps, options.num_samples, interval)
        print(f"interval {interval}: {baseline_s:.4f} s -> {accelerated_s:.4f} s")
        print(f"speedup: {baseline_s / accelerated_s:.2f}", flush=True)


if __name__ == "__main__":
    main()
