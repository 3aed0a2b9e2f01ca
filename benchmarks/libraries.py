"""What a library would cost in place of a few lines of boundd's own, and where the two differ.

Each case runs in fresh interpreters: what is imported there anyway first, then the candidate, timed, with the memory
that it adds. A candidate that isn't installed is left out; `pip install scipy scikit-image torchmetrics rpds-py
pyrsistent` brings them all.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import command_line, describe

ROUNDS = 5
MAP_SIZES = (30, 1_000, 10_000)

RUN = """
import json, resource, sys, time
{before}
start_kib, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
{candidate}
took_s = time.perf_counter() - began
more_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib
print(json.dumps([took_s, more_kib / 1024, {value}]))
"""

IMAGES = """
import torch
torch.manual_seed(1)
first = torch.rand(3, 64, 64)
second = (first + 0.1 * torch.rand(3, 64, 64)).clamp(0, 1)
"""
ROWS = "[('cell', 'state')] + [(f'SDXL/DDIM/{n}/tome', 'running') for n in range(40)]"


@dataclass(frozen=True, slots=True)
class Case:
    """A job, who could do it, and what each needs: what is imported anyway, its own import and call, and a value."""

    job: str
    who: str
    needs: str
    before: str
    candidate: str
    value: str


CASES = (
    Case("Student's t", "boundd.worker.sequential (mpmath, which torch brings)", "mpmath", "import torch",
         "from boundd.worker.sequential import critical_t; t = critical_t(0.001, 7)", "round(t, 4)"),
    Case("Student's t", "scipy.special", "scipy", "import torch",
         "from scipy.special import stdtrit; t = stdtrit(7, 0.999)", "round(float(t), 4)"),
    Case("SSIM of two images", "boundd.worker.quality", "torch", IMAGES,
         "from boundd.worker.quality import ssim; s = ssim(first, second)", "round(s, 4)"),
    Case("SSIM of two images", "scikit-image", "skimage", IMAGES,
         "from skimage.metrics import structural_similarity as ssim; s = ssim(first.numpy(), second.numpy(), "
         "channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)",
         "round(float(s), 4)"),
    Case("SSIM of two images", "torchmetrics", "torchmetrics", IMAGES,
         "from torchmetrics.functional.image import structural_similarity_index_measure as ssim; "
         "s = ssim(first[None], second[None], data_range=1.0)", "round(float(s), 4)"),
    Case("the table of `boundctl status`", "boundd.cli.text", "click", "import click",
         f"from boundd.cli.text import table\nrows = {ROWS}\ntext = table(rows[0], rows[1:])",
         "len(text.splitlines())"),
    Case("the table of `boundctl status`", "rich", "rich", "import click",
         f"import io\nfrom rich.console import Console\nfrom rich.table import Table\nrows = {ROWS}\n"
         "made = Table(*rows[0], box=None, pad_edge=False)\nfor row in rows[1:]: made.add_row(*row)\n"
         "out = io.StringIO(); Console(file=out, width=120).print(made); text = out.getvalue()",
         "len(text.splitlines())"),
)  # fmt: skip

SIZES = ("24GiB", "24", "24GiB junk", "24 Gbit", "9007199254740993B", "24GiB2")


@dataclass(frozen=True, slots=True)
class Cost:
    """The least of some rounds, because other work on the machine only adds; and what the candidate answered."""

    took_s: float
    more_mib: float
    answer: float

    def __str__(self) -> str:
        return f"{self.took_s * 1000:8.1f} ms {self.more_mib:7.1f} MiB   {self.answer}"


def measured(case: Case, rounds: int = ROUNDS) -> Cost | None:
    """What a case costs, in interpreters of its own; None where it isn't installed."""
    if importlib.util.find_spec(case.needs) is None:
        return None
    code = RUN.format(before=case.before, candidate=case.candidate, value=case.value)
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds)
    ]
    return Cost(min(run[0] for run in runs), min(run[1] for run in runs), runs[0][2])


def sizes() -> list[str]:
    """What boundd and pydantic's ByteSize take texts for."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from boundd.config.units import parse_size

    lines = []
    for text in SIZES:
        try:
            own = f"{parse_size(text)}"
        except ValueError:
            own = "refused"
        try:
            theirs = f"{int(TypeAdapter(ByteSize).validate_python(text))}"
        except ValidationError:
            theirs = "refused"
        lines.append(f"  {text:<20} boundd {own:<20} ByteSize {theirs}")
    return lines


def maps() -> list[str]:
    """Nanoseconds of a look-up, a change and one item of an iteration, by map and size."""
    made: dict[str, tuple[Callable[[dict[str, int]], Any], Callable[[Any, str], Any]]] = {}
    if importlib.util.find_spec("immutables"):
        from immutables import Map

        made["immutables.Map"] = (Map, lambda known, key: known.set(key, 1))
    if importlib.util.find_spec("rpds"):
        from rpds import HashTrieMap

        made["rpds.HashTrieMap"] = (HashTrieMap, lambda known, key: known.insert(key, 1))
    if importlib.util.find_spec("pyrsistent"):
        from pyrsistent import pmap

        made["pyrsistent.pmap"] = (pmap, lambda known, key: known.set(key, 1))
    lines = []
    for size in MAP_SIZES:
        known = {f'{{"model":"SDXL","n":{n}}}': n for n in range(size)}
        for name, (make, change) in made.items():
            lines.append(f"  {size:>7,} items  {name:<18}{_costs(make(known), list(known)[size // 2], change)}")
    return lines


def _costs(known: Mapping[str, int], key: str, change: Callable[[Any, str], Any]) -> str:
    def ns(call: Callable[[], object], times: int, items: int = 1) -> float:
        return min(timeit.repeat(call, number=times, repeat=5)) / times / items * 1e9

    look_up, changed = ns(lambda: known[key], 2000), ns(lambda: change(known, key), 500)
    iterated = ns(lambda: sum(1 for _ in known.items()), 5, len(known))
    return f"look-up {look_up:6.0f}  change {changed:6.0f}  iteration {iterated:6.0f}"


def main() -> None:
    """Print it all."""
    print(f"$ {command_line()}\n{describe()}")
    print("\nImported and called once, beside what is imported anyway: time, memory, the answer")
    job = ""
    for case in CASES:
        if case.job != job:
            job = case.job
            print(f"{job}:")
        print(f"  {case.who:<55}{measured(case) or 'not installed'}")
    print("\nA size in bytes, as boundd.config.units and as pydantic's ByteSize read it:")
    print("\n".join(sizes()))
    print("\nPersistent maps, nanoseconds:")
    print("\n".join(maps()))


if __name__ == "__main__":
    main()
