"""`python -m benchmarks.gpu`: see the package."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
import warnings
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

STARTED_S = time.monotonic()
"""Before torch is imported, which takes a good part of a minute from a cold disk and counts."""
RESULTS = Path(__file__).parent.parent / "results"
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "DeepCache", "tgate", "tomesd", "numpy")


def main() -> int:
    """Measure, printing as it goes; write the text and the JSON. 0 where nothing was left out, else 3."""
    arguments = _arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    warnings.filterwarnings("ignore")
    import torch

    if not arguments.tiny and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU; --tiny tries everything on digits models", file=sys.stderr)
        return 6
    for library in ("diffusers", "transformers"):
        import_module(f"{library}.utils.logging").disable_progress_bar()
    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.rows import TASKS, tiny

    lines: list[str] = []

    def say(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    device = "cpu" if arguments.tiny else "cuda:0"
    if arguments.tiny:
        torch.set_num_threads(1)
    about = _about(device, tiny=arguments.tiny)
    say(_heading(about))
    bench = Bench(device, "float32" if arguments.tiny else "float16", STARTED_S + arguments.budget_s, say)
    if arguments.tiny:
        bench.rounds = 2
    base = arguments.out / f"gpu-{_slug(about['device'])}"
    for task in TASKS:
        bench.run(tiny(task) if arguments.tiny else task)
        _write(base, lines, {**about, **_measured(bench), "elapsed_s": time.monotonic() - STARTED_S})
    if bench.left_out:
        say("\nleft out: " + "; ".join(bench.left_out))
    say(f"\n{time.monotonic() - STARTED_S:.0f} s; {base}.json")
    _write(base, lines, {**about, **_measured(bench), "elapsed_s": time.monotonic() - STARTED_S})
    return 3 if bench.left_out else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=sys.modules["benchmarks.gpu"].__doc__)
    parser.add_argument("--budget-s", type=float, default=520, help="stop after so many seconds (default: %(default)g)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="the digits models on the CPU: its figures mean nothing")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if not arguments.out.is_dir():
        parser.error(f"--out {arguments.out}: there is no such folder")
    return arguments


def _about(device: str, *, tiny: bool) -> dict[str, Any]:
    import torch

    is_cuda = device != "cpu"
    return {
        "format": "boundd-bench-gpu/1",
        "device": torch.cuda.get_device_name(0) if is_cuda else "cpu, tiny models",
        "device_bytes": torch.cuda.get_device_properties(0).total_memory if is_cuda else None,
        "cuda": torch.version.cuda,
        "weights": "digits models" if tiny else "random",
        "is_tiny": tiny,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def _heading(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    what = (
        "TINY MODELS ON A CPU: that it runs, and nothing else; the published figures are those of real models"
        if about["is_tiny"]
        else "true architectures, random weights, float16, guidance 7.5; whole calls by CUDA events, rows and baseline "
        "in turn, medians (lowest to highest)"
    )
    return f"{about['device']}, {about['at']}\nPython {about['python']}, CUDA {about['cuda']}, {versions}\n{what}"


def _measured(bench: Any) -> dict[str, Any]:
    return {"rows": bench.rows, "memory": bench.memory, "left_out": bench.left_out}


def _write(base: Path, lines: list[str], document: dict[str, Any]) -> None:
    """Both files, whole or not at all: a run that is cut off leaves what it had measured."""
    for suffix, text in ((".txt", "\n".join(lines) + "\n"), (".json", json.dumps(document, indent=1) + "\n")):
        part = base.with_name(base.name + suffix + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(base.with_name(base.name + suffix))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
