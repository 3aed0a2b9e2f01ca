"""Real pipelines for the worker's tests: the built-in models, each loaded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from boundd.catalogue.schedulers import resolve_scheduler
from boundd.protocol.environment import WorkerEnvironment
from boundd.worker.devices import open_device
from boundd.worker.pipelines import build_scheduler, load_pipeline
from boundd.worker.settings import RunSettings, resolve

MODELS = ("digits-sd15", "digits-sd21", "digits-sdxl")
SCHEDULERS = ("DDIM", "DPM-Solver++", "UniPC")

MakeSettings = Callable[..., RunSettings]
Load = Callable[[str, str], Any]


@pytest.fixture(scope="session")
def make_settings() -> MakeSettings:
    """Settings of a small run; any option can be given."""

    def make(**options: Any) -> RunSettings:
        small = {
            "pipe": "digits-sd15",
            "sched": "DDIM",
            "steps": 6,
            "search_targets": "deepcache",
            "num_samples": 2,
            "batch_size": 1,
            "grid": "coarse",
            "device": "cpu",
        }
        return resolve(small | options, WorkerEnvironment())

    return make


@pytest.fixture(scope="session")
def load(make_settings: MakeSettings) -> Load:
    """A built-in model with a scheduler; the model is loaded once and shared, so tests must leave it as it
    was."""

    @cache
    def model(name: str) -> Any:
        settings = make_settings(pipe=name)
        return load_pipeline(settings, open_device(settings, None))

    def with_scheduler(name: str, scheduler: str) -> Any:
        pipe = model(name)
        pipe.scheduler = build_scheduler(pipe.scheduler.config, resolve_scheduler(scheduler))
        return pipe

    return with_scheduler
