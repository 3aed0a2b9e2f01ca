"""Settings: where each comes from, and which can't be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from boundd.protocol.environment import WorkerEnvironment
from boundd.worker.settings import RunSettings, SettingsError, resolve

OPTIONS = {"pipe": "SD1.5", "sched": "DDIM", "steps": 20, "search_targets": "deepcache"}


def settle(options: Mapping[str, Any] | None = None, **environment: Any) -> RunSettings:
    """Settings of these options in this environment."""
    return resolve(OPTIONS if options is None else options, WorkerEnvironment(**environment))


def test_the_old_command_line_is_enough() -> None:
    """The old script's options settle everything; the rest are the field's defaults."""
    settings = settle(OPTIONS | {"num_samples": 32, "batch_size": 4})
    assert settings.pipeline_class == "StableDiffusionPipeline"
    assert settings.scheduler_class == "DDIMScheduler"
    assert settings.methods == ("deepcache",)
    assert (settings.num_samples, settings.batch_size, settings.seed, settings.tolerance) == (32, 4, 42, 0.02)
    assert settings.source == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert settings.scorer == ""


def test_option_over_cell_over_entry_over_default() -> None:
    """Each place wins over the ones after it."""
    cell = {"model": "SDXL", "scheduler": "UniPC", "steps": "25", "method": "tome+deepcache", "tolerance": 0.05}
    entry = {"source": "/models/xl", "dtype": "bfloat16", "tolerance": 0.5, "weights": "pretrained"}
    settings = settle({"steps": 50, "pipe": None}, cell=cell, model=entry)
    assert (settings.model, settings.steps, settings.methods) == ("SDXL", 50, ("deepcache", "tome"))
    assert settings.scheduler_class == "UniPCMultistepScheduler"
    assert (settings.source, settings.dtype, settings.tolerance) == ("/models/xl", "bfloat16", 0.05)
    assert settle({}, cell=cell).steps == 25


def test_the_attempts_batch_is_the_ladders() -> None:
    """BOUNDD_BATCH_SIZE overrides the cell's, and an option both."""
    cell = {"model": "SD1.5", "scheduler": "DDIM", "steps": 20, "method": "tome", "batch_size": 4}
    assert settle({}, cell=cell, batch_size=2).batch_size == 2
    assert settle({"batch_size": 1}, cell=cell, batch_size=2).batch_size == 1
    assert settle({}, cell=cell).batch_size == 4


def test_constants_the_worker_does_not_know_are_ignored() -> None:
    """A cell may hold what is meant for somebody else."""
    cell = {"model": "SD1.5", "scheduler": "DDIM", "steps": 20, "method": "tome", "colour": "blue"}
    assert settle({}, cell=cell).methods == ("tome",)


def test_builtin_models_bring_their_scorer() -> None:
    """Unless told that there is to be none; and another model never gets the digits' scorer by itself."""
    digits = OPTIONS | {"pipe": "digits-sdxl"}
    assert settle(digits).scorer == settle(digits).source == "builtin"
    assert settle(digits, scorer={"source": "openai/clip"}).scorer == "builtin"
    assert settle(digits, scorer={"source": ""}).scorer == ""
    assert settle(digits | {"scorer": ""}).scorer == ""
    assert settle(scorer={"source": "openai/clip"}).scorer == "openai/clip"


def test_class_names_are_taken() -> None:
    """The scheduler's and the pipeline's class, where the latter means one model."""
    settings = settle(OPTIONS | {"pipe": "StableDiffusionXLPipeline", "sched": "UniPCMultistepScheduler"})
    assert (settings.model, settings.scheduler_class) == ("SDXL", "UniPCMultistepScheduler")
    own = settle(OPTIONS | {"pipe": "StableDiffusionPipeline", "source": "/models/mine"})
    assert (own.pipeline_class, own.source) == ("StableDiffusionPipeline", "/models/mine")


def test_any_name_will_do_with_a_source() -> None:
    """A model we never heard of is what its source says it is."""
    settings = settle(OPTIONS | {"pipe": "mine"}, model={"source": "/models/mine"})
    assert (settings.model, settings.pipeline_class, settings.source) == ("mine", "", "/models/mine")
    assert settle(OPTIONS | {"prompts": "a.txt"}).prompts == Path("a.txt")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pipe": None}, "--pipe: is needed"),
        ({"pipe": "SD15"}, "did you mean SD1.5"),
        ({"pipe": "StableDiffusionPipeline"}, "may mean SD1.5 or SD2.1"),
        ({"sched": "DIMM"}, "did you mean DDIM"),
        ({"search_targets": "deepcash"}, "did you mean deepcache"),
        ({"search_targets": "tome+tome"}, "twice"),
        ({"steps": 0}, "--steps: must be a whole number from 1 to 1000"),
        ({"steps": True}, "--steps"),
        ({"steps": "20.5"}, "--steps"),
        ({"num_samples": 0}, "--num_samples"),
        ({"batch_size": -1}, "--batch_size"),
        ({"tolerance": -0.1}, "--tolerance"),
        ({"tolerance": float("nan")}, "--tolerance"),
        ({"guidance_scale": float("inf")}, "--guidance_scale"),
        ({"resolution": 513}, "multiple of 8"),
        ({"dtype": "int8"}, "--dtype: must be one of"),
        ({"grid": "fine"}, "--grid: must be one of"),
        ({"weights": "guessed"}, "--weights: must be one of"),
        ({"attention": "flash"}, "--attention: must be one of"),
        ({"repeats": 0}, "--repeats"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: dict[str, Any], reason: str) -> None:
    """The error names the option, and the nearest right value where there is one."""
    with pytest.raises(SettingsError) as caught:
        settle(OPTIONS | change)
    assert reason in str(caught.value)
