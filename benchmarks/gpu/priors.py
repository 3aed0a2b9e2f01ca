"""Footprint priors from what the benchmark measured: `python -m benchmarks.gpu.priors benchmarks/results/gpu-….json`.

A prior is a model's weights and its activations an image (`boundd/core/memory/footprint.py`). What a cell takes of a
device is what the allocator reserves, so that is what the activations come from: the largest (reserved − weights) /
batch over all methods and batches, up to a whole MiB. Beside it stands the straight line through the allocated peaks
over the batch, which says how far the need is from proportional. Nothing is written: whoever reads it decides.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024**2


@dataclass(frozen=True)
class Prior:
    """A model's prior: bytes of weights, and bytes of activations an image."""

    weights_bytes: int
    activations_bytes: int


def priors_of(memory: Sequence[Mapping[str, Any]]) -> dict[str, Prior]:
    """The prior of each model; no prior is below any peak that was measured."""
    priors: dict[str, Prior] = {}
    for record in _that_fitted(memory):
        beyond = record["peak_reserved_bytes"] - record["weights_bytes"]
        an_image = -(-beyond // (record["batch_size"] * MIB)) * MIB
        known = priors.get(record["model"], Prior(record["weights_bytes"], 0))
        priors[record["model"]] = Prior(known.weights_bytes, max(known.activations_bytes, an_image))
    return priors


def line_through(points: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The least-squares line (intercept, slope) through at least two points of different x."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return mean_y - slope * mean_x, slope


def report(document: Mapping[str, Any]) -> str:
    """The priors as code, and the lines they were judged by."""
    memory = document["memory"]
    lines = [f"# from {document['device']}, {document['at']}, float16" + (", TINY" if document["is_tiny"] else "")]
    for model, prior in priors_of(memory).items():
        mib = prior.activations_bytes // MIB
        lines.append(f'"{model}": Prior({prior.weights_bytes:_}, {mib} * MIB),')
    beside = [record.get("beside_allocator_bytes") for record in _that_fitted(memory)]
    known = [size for size in beside if size is not None]
    if known:
        lines.append(f"# beside the allocator, the context included: at most {max(known) / MIB:.0f} MiB")
    subjects = dict.fromkeys((record["model"], "+".join(record["methods"])) for record in _that_fitted(memory))
    for model, method in subjects:
        points = [
            (record["batch_size"], record["peak_allocated_bytes"])
            for record in _that_fitted(memory)
            if (record["model"], "+".join(record["methods"])) == (model, method)
        ]
        if len(points) > 1:
            intercept, slope = line_through(points)
            lines.append(
                f"# {model} {method or 'baseline'}: {intercept / MIB:.0f} MiB + {slope / MIB:.0f} MiB an image"
            )
    return "\n".join(lines)


def _that_fitted(memory: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in memory if "out_of_memory" not in record]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m benchmarks.gpu.priors {Path('benchmarks/results/gpu-….json')}")
    print(report(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
