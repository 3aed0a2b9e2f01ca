"""The methods on the three architectures: exact at the identity, at work elsewhere, and gone without a
trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from boundd.worker.methods import combine, load_method
from boundd.worker.methods.base import Method, ModelContext, Restored
from boundd.worker.methods.combination import Combination
from boundd.worker.pipelines import describe
from boundd.worker.sampling import Batch, Sampler
from tests.worker.conftest import MODELS, SCHEDULERS, Load, MakeSettings

COMBINATIONS = (
    ("deepcache",),
    ("tgate",),
    ("tome",),
    ("deepcache", "tgate"),
    ("deepcache", "tome"),
    ("tgate", "tome"),
    ("deepcache", "tgate", "tome"),
)
BATCH = Batch(prompts=("a handwritten seven", "a 3"), seeds=(5, 6))

SD15 = ModelContext(
    steps=50,
    guidance_scale=7.5,
    is_xl=False,
    scheduler_order=1,
    attention_downsamples=(1, 2, 4),
    cache_branches=11,
)


def _forwards(pipe: Any) -> int:
    """How many modules of the UNet have an instance attribute where the class's should be seen."""
    return sum("forward" in vars(module) or "cache" in vars(module) for module in pipe.unet.modules())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("model", MODELS)
def test_exact_at_the_identity_and_undone_exactly(
    model: str, scheduler: str, load: Load, make_settings: MakeSettings
) -> None:
    """For every method and combination: identity gives the baseline's bits, a real point does not, undoing
    restores."""
    settings = make_settings(pipe=model, sched=scheduler)
    pipe = load(model, scheduler)
    sampler = Sampler(settings, "cpu")
    context = describe(pipe, settings)
    plain = sampler.generate(pipe, BATCH)
    attributes = set(vars(pipe))
    for names in COMBINATIONS:
        method = combine(names)
        assert method.requires(context) is None
        with method.applied(pipe, method.identity(context), pipe) as call:
            assert torch.equal(sampler.generate(call, BATCH), plain), f"{names} is not exact at its identity"
        with method.applied(pipe, method.grid(context, "coarse")[-1], pipe) as call:
            # Twice: the caches of the first call must not reach into the second.
            accelerated = sampler.generate(call, BATCH)
            assert torch.equal(sampler.generate(call, BATCH), accelerated), f"{names} does not repeat"
        assert not torch.equal(accelerated, plain), f"{names} did nothing"
        assert torch.equal(sampler.generate(pipe, BATCH), plain), f"{names} was not undone"
        assert _forwards(pipe) == 0
        assert set(vars(pipe)) == attributes


@pytest.mark.parametrize("names", COMBINATIONS)
def test_an_error_while_applied_undoes_it_too(names: tuple[str, ...], load: Load, make_settings: MakeSettings) -> None:
    """A call that fails half-way, as one that runs out of memory does, leaves the pipeline as it was."""
    settings = make_settings()
    pipe = load("digits-sd15", "DDIM")
    sampler = Sampler(settings, "cpu")
    method = combine(names)
    plain = sampler.generate(pipe, BATCH)

    def fail_at_third_step(pipe: Any, step: int, timestep: Any, values: Any) -> Any:
        if step == 2:
            raise MemoryError
        return values

    point = method.grid(describe(pipe, settings), "coarse")[0]
    with pytest.raises(MemoryError), method.applied(pipe, point, pipe) as call:
        call("a 3", num_inference_steps=6, callback_on_step_end=fail_at_third_step)
    assert _forwards(pipe) == 0
    assert torch.equal(sampler.generate(pipe, BATCH), plain)


def test_randomness_outside_is_left_alone(load: Load, make_settings: MakeSettings) -> None:
    """ToMe draws nothing from the global generator."""
    settings = make_settings()
    pipe = load("digits-sd15", "DDIM")
    method = load_method("tome")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with method.applied(pipe, method.grid(describe(pipe, settings), "coarse")[0], pipe) as call:
        Sampler(settings, "cpu").generate(call, BATCH)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_described_by_its_structure(model: str, load: Load, make_settings: MakeSettings) -> None:
    """The levels with attention and the branches come from the UNet, not from a name."""
    context = describe(load(model, "DDIM"), make_settings(pipe=model))
    is_xl = model == "digits-sdxl"
    assert context.is_xl == is_xl
    assert context.attention_downsamples[0] == (2 if is_xl else 1)
    assert context.cache_branches == 8  # three levels of two resnets, and two downsamplers
    assert context.scheduler_order == 1


@pytest.mark.parametrize("names", COMBINATIONS)
@pytest.mark.parametrize("size", ["coarse", "standard"])
def test_grids_are_sound(names: tuple[str, ...], size: Any) -> None:
    """Points are distinct, name all the parameters of each part that they apply, and never are the identity; of a
    combination every part is there alone, and all of them are there together."""
    method = combine(names)
    for context in (SD15, replace(SD15, steps=4, is_xl=True, attention_downsamples=(2, 4), cache_branches=8)):
        grid = method.grid(context, size)
        keys = [tuple(sorted(point.items())) for point in grid]
        assert grid
        assert len(set(keys)) == len(keys)
        parts = {name: set(load_method(name).parameter_names) for name in names}
        applied = [{name for name, own in parts.items() if own & set(point)} for point in grid]
        assert all(set(point) == set().union(*map(parts.get, used)) for point, used in zip(grid, applied, strict=True))
        assert all({name} in applied for name in names)
        assert set(names) in applied
        assert method.identity(context) not in grid


def test_the_standard_grids_are_the_fields() -> None:
    """The grids at full size, as the field uses them."""
    sizes = {name: len(load_method(name).grid(SD15, "standard")) for name in ("deepcache", "tgate", "tome")}
    assert sizes == {"deepcache": 20, "tgate": 30, "tome": 14}
    sdxl = replace(SD15, attention_downsamples=(2, 4))
    assert {point["max_downsample"] for point in load_method("tome").grid(sdxl, "standard")} == {2, 4}
    assert len(load_method("deepcache").grid(replace(SD15, steps=5), "standard")) == 8


@pytest.mark.parametrize(
    ("name", "context", "reason"),
    [
        ("tgate", replace(SD15, guidance_scale=1.0), "guidance scale of 1"),
        ("tgate", replace(SD15, scheduler_order=2), "2 a step"),
        ("deepcache", replace(SD15, scheduler_order=2), "2 times"),
        ("deepcache", replace(SD15, cache_branches=0), "down blocks"),
        ("tome", replace(SD15, attention_downsamples=()), "transformer blocks"),
    ],
)
def test_a_misfit_is_refused_with_its_reason(name: str, context: ModelContext, reason: str) -> None:
    """What can't work says why, alone and in a combination."""
    assert reason in (load_method(name).requires(context) or "")
    other = "tome" if name != "tome" else "tgate"
    assert reason in (combine((name, other)).requires(context) or "")


class _Loner(Method):
    """A method that composes with nothing."""

    name = "loner"
    parameter_names = ("ratio",)
    composes_with = frozenset()


class _Twin(_Loner):
    name = "twin"
    composes_with = frozenset({"tome"})


def test_methods_that_do_not_compose_are_refused() -> None:
    """Neither says that it composes with the other, or both use the same name for a parameter."""
    tome = load_method("tome")
    with pytest.raises(ValueError, match="neither says"):
        Combination([_Loner(), tome])  # type: ignore[abstract]
    with pytest.raises(ValueError, match="both have a parameter 'ratio'"):
        Combination([_Twin(), tome])  # type: ignore[abstract]


def test_tome_refuses_to_merge_more_than_there_is(load: Load) -> None:
    """Past its largest ratio tomesd would quietly merge less."""
    pipe = load("digits-sd15", "DDIM")
    with (
        pytest.raises(ValueError, match=r"at most 0\.75"),
        load_method("tome").applied(pipe, {"ratio": 0.8, "max_downsample": 1}, pipe),
    ):
        pass


def test_restored_undoes_classes_attributes_and_forwards() -> None:
    """Whatever is set on a module is gone, and whatever was there is back."""
    tree = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    tree[1].kept = 1
    with Restored(tree):
        tree[0].forward = lambda values: values
        tree[0].cache = torch.ones(3)
        tree[1].kept = 2
        tree[1].__class__ = torch.nn.GELU
    assert "forward" not in vars(tree[0])
    assert not hasattr(tree[0], "cache")
    assert tree[1].kept == 1
    assert type(tree[1]) is torch.nn.ReLU
