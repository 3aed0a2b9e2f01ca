"""docs/methods.md's example: installed as a package of its own, found by its entry point, measured with."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from boundd.worker.methods.base import Method, ModelContext
from boundd.worker.pipelines import describe
from boundd.worker.sampling import Sampler, cut_batches
from tests.worker.conftest import Load, MakeSettings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "method"
MODULE = "boundd_guidance_interval"


@pytest.fixture(scope="module")
def method() -> Any:
    """The example's class, from its file."""
    spec = importlib.util.spec_from_file_location(MODULE, EXAMPLE / f"{MODULE}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GuidanceInterval()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it, into a folder of its own: built here, nothing fetched."""
    target = tmp_path_factory.mktemp("site")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(EXAMPLE)],
        check=True,
        timeout=120,
    )
    return target


def test_the_document_shows_the_example_as_it_is() -> None:
    """To the letter."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert (EXAMPLE / f"{MODULE}.py").read_text(encoding="utf-8").rstrip() in text


def test_the_document_names_the_whole_interface() -> None:
    """Each member of the protocol, and each thing that a method may depend on."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    members = [name for name in (*vars(Method), *Method.__annotations__) if not name.startswith("_")]
    for name in (*members, *ModelContext.__dataclass_fields__, "lossier", "faster"):
        assert f"`{name}" in text, name


@pytest.mark.parametrize("model", ["digits-sd15", "digits-sdxl"])
def test_it_does_what_it_says(model: str, method: Any, load: Load, make_settings: MakeSettings) -> None:
    """Identity bit for bit; fewer guided steps move images more; the UNet really computes half; all is undone."""
    pipe, settings = load(model, "DDIM"), make_settings(pipe=model)
    context, sampler = describe(pipe, settings), Sampler(settings, "cpu")
    batch = cut_batches(["a 3", "a 7"], 2, 2, 0)[0]
    sizes: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda _module, arguments, _options: sizes.append(len(arguments[0])), with_kwargs=True
    )
    try:
        plain = sampler.generate(pipe, batch)
        with method.applied(pipe, method.identity(context), pipe) as call:
            assert torch.equal(sampler.generate(call, batch), plain)
        moved = []
        for guided in (4, 2):
            sizes.clear()
            with method.applied(pipe, {"guided_steps": guided}, pipe) as call:
                moved.append(float((sampler.generate(call, batch) - plain).abs().mean()))
            assert sizes == [4] * guided + [2] * (settings.steps - guided)
        assert 0 < moved[0] < moved[1]
        assert torch.equal(sampler.generate(pipe, batch), plain)
    finally:
        hook.remove()


def test_it_refuses_what_it_cannot_do(method: Any, load: Load, make_settings: MakeSettings) -> None:
    """No guidance, and schedulers that call the UNet twice a step."""
    assert "no guidance" in method.requires(describe(load("digits-sd15", "DDIM"), make_settings(guidance_scale=1.0)))
    assert "2 calls" in method.requires(describe(load("digits-sd15", "Heun"), make_settings()))


def test_installed_it_is_measured_like_any_other(installed: Path) -> None:
    """By the command line, in a process of its own, nothing of boundd changed; its version is in the result."""
    options = {"pipe": "digits-sd15", "sched": "DDIM", "steps": 10, "search_targets": "guidance-interval"}
    options |= {"num_samples": 2, "batch_size": 1, "grid": "coarse", "repeats": 2, "budget_s": 1, "tolerance": 0.5}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "boundd.worker", *arguments, "--device", "cpu", "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["result"]["methods"] == ["guidance-interval"]
    measured = {point["parameters"]["guided_steps"] for point in document["points"]}
    assert measured & {4, 8, 10}
    assert measured <= {4, 8, 10}
    assert document["result"]["fingerprint"]["boundd-method-guidance-interval"] == "1.0"


def test_without_it_the_name_is_unknown() -> None:
    """The control of the test above: it is the installed package that made the name known."""
    done = subprocess.run(
        [sys.executable, "-m", "boundd.worker", "--pipe", "digits-sd15", "--sched", "DDIM", "--steps", "9",
         "--search_targets", "guidance-interval"],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unknown method 'guidance-interval'" in done.stderr
