"""A worker for `make demo-gpus`: takes memory of a simulated GPU, and the lease of it, and measures nothing.

It does to a device what a real worker does: loads (memory grows to the weights), generates (a peak that comes and goes)
and times, under the device's lease, each for a short while. The speed-ups that it reports are made up, and every
line says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.lease import DeviceLease, Lease, NoLease
from tests.fake_nvml.memory import GIB, DeviceMemory, OutOfMemoryError

STEP_BYTES = GIB // 4
"""Memory grows in steps, as weights are loaded tensor by tensor."""
POINTS = 3


@dataclass(frozen=True)
class Model:
    """What it holds after loading, what it takes for each image of a batch beside, and how long things take."""

    weights_gib: float
    image_gib: float
    load_s: float
    point_s: float


MODELS = {
    "simulated-SD1.5": Model(weights_gib=2.5, image_gib=0.8, load_s=0.4, point_s=0.5),
    "simulated-SD2.1": Model(weights_gib=3.5, image_gib=1.1, load_s=0.5, point_s=0.7),
    "simulated-SDXL": Model(weights_gib=7.0, image_gib=2.2, load_s=0.8, point_s=1.0),
}
EXTRA_GIB = {"deepcache+tome": 2.0}
"""What the config's footprint doesn't know of: this one runs out of memory at its cap, once."""


class Worker:
    """One attempt of a cell."""

    def __init__(self, environment: WorkerEnvironment, model: Model, extra_gib: float) -> None:
        assert environment.results is not None
        self._model = model
        self._results = environment.results.open("a", buffering=1)
        self._lease: Lease = NoLease() if environment.lease_folder is None else DeviceLease(environment.lease_folder)
        self._weights_bytes = int(model.weights_gib * GIB)
        images_gib = (environment.batch_size or 1) * model.image_gib
        self._peak_bytes = self._weights_bytes + int((images_gib + extra_gib) * GIB)
        self._phase = "load"
        self._memory: DeviceMemory | None = None

    def run(self) -> int:
        """Load, then time the points; the exit status."""
        try:
            self._memory = DeviceMemory()
            self._load(self._memory)
            self._measure(self._memory)
        except OutOfMemoryError as error:
            self._say_memory()
            self._say(
                type="error",
                error="out_of_memory",
                message=str(error),
                phase=self._phase,
                requested_bytes=error.requested_bytes,
                free_bytes=error.free_bytes,
            )
            return 3
        return 0

    def _load(self, memory: DeviceMemory) -> None:
        steps = max(1, self._weights_bytes // STEP_BYTES)
        with self._lease.shared():
            for _ in range(steps):
                memory.allocate(self._weights_bytes // steps)
                time.sleep(self._model.load_s / steps)

    def _measure(self, memory: DeviceMemory) -> None:
        self._phase = "points"
        for done in range(POINTS):
            with self._lease.shared():
                memory.resize(self._peak_bytes)
                time.sleep(self._model.point_s / 2)
            with self._lease.exclusive():
                time.sleep(self._model.point_s / 2)
            memory.resize(self._weights_bytes)
            speedup = round(1.0 + 0.1 * (done + 1), 2)
            self._say(type="progress", done=done + 1, total=POINTS, lease_waited_s=round(self._lease.waited_s, 3))
            self._say(
                type="point",
                parameters={"point": done + 1},
                speedup=speedup,
                score_loss=None,
                isolation="exclusive",
                simulated=True,
            )
        self._say_memory()
        best = {"parameters": {"point": POINTS}, "speedup": speedup, "score_loss": None}
        self._say(
            type="result",
            max_speedup=speedup,
            max_speedup_within_tolerance=None,
            best=best,
            isolation="exclusive",
            simulated=True,
            lease_waited_s=round(self._lease.waited_s, 3),
        )

    def _say_memory(self) -> None:
        peak = 0 if self._memory is None else self._memory.peak_bytes
        self._say(type="memory", peak_allocated_bytes=peak, peak_reserved_bytes=peak)

    def _say(self, **line: object) -> None:
        self._results.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        model, method = sys.argv[1:]
        worker = Worker(WorkerEnvironment.from_environ(os.environ), MODELS[model], EXTRA_GIB.get(method, 0.0))
        sys.exit(worker.run())
