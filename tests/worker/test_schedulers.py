"""Schedulers: what is accepted samples rightly, and what can't is refused by name, whatever the config says.

boundd tries a scheduler on known latents (a dry run). These tests judge what it accepts in another way: by a
model of Gaussian data, whose prediction has a closed form, and by diffusers' own word on what is compatible.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from boundd.catalogue.schedulers import SCHEDULERS
from boundd.worker.digits import model_folder
from boundd.worker.errors import BadDataError
from boundd.worker.pipelines import check_schedule
from boundd.worker.schedulers import FAMILIES, SUPPORTED, build_scheduler, dry_run, read_own_scheduler
from tests.worker.conftest import MakeSettings

pytestmark = pytest.mark.filterwarnings("ignore")
diffusers.utils.logging.set_verbosity_error()

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
MEAN, DEVIATION = 2.0, 0.5
"""Of the Gaussian data: above 1, so that clipped latents miss it."""
FOREIGN = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "UnCLIPScheduler",
           "FlowMatchHeunDiscreteScheduler", "LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler",
           "IPNDMScheduler", "VQDiffusionScheduler", "ScoreSdeVeScheduler", "DDIMInverseScheduler",
           "NobodysScheduler")  # fmt: skip
OWN = sorted(FAMILIES["diffusion"] - {"DPMSolverSDEScheduler"})  # that one needs a package of its own


def sample_gaussian(scheduler: Any, steps: int, spread: float = DEVIATION) -> tuple[list[float], float, float]:
    """Denoise with the ideal model of Gaussian data: the timesteps that it is asked at, and what comes out."""
    config, shares = scheduler.config, scheduler.alphas_cumprod.double()
    generator = torch.Generator().manual_seed(1)
    scheduler.set_timesteps(steps)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = torch.randn((1, 4, 12, 12), generator=generator) * scheduler.init_noise_sigma
    asked = []
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, timestep).double()
        asked.append(float(timestep))
        share = torch.as_tensor(asked[-1]).clamp(0, len(shares) - 1)
        share = shares[share.floor().long()].lerp(shares[share.ceil().long()], (share % 1).double()).clamp(1e-12, 1)
        signal, noise = share.sqrt(), (1 - share).clamp(1e-12).sqrt()
        gain = signal * spread**2 / (share * spread**2 + noise**2)
        clean = MEAN + gain * (seen - signal * MEAN)
        epsilon = (seen - signal * clean) / noise
        predicted = {"sample": clean, "epsilon": epsilon, "v_prediction": signal * epsilon - noise * clean}
        latents = scheduler.step(predicted[config.prediction_type].float(), timestep, latents, **options).prev_sample
    return asked, float(latents.mean()), float(latents.std())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction", "v-prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_table_holds(name: str, prediction: str) -> None:
    """Every entry samples, and every prediction type that isn't there is refused."""
    class_name = SCHEDULERS[name]
    config = {**SD, "prediction_type": prediction}
    if prediction not in SUPPORTED["diffusion", class_name]:
        with pytest.raises(BadDataError, match=prediction):
            build_scheduler(config, class_name, "EulerDiscreteScheduler")
        return
    scheduler = build_scheduler(config, class_name, "EulerDiscreteScheduler")
    result = dry_run(scheduler, 20)
    asked, mean, deviation = sample_gaussian(scheduler, 20)
    assert list(result.timesteps) == asked
    assert mean == pytest.approx(MEAN, abs=0.2)  # PNDM averages velocities of several timesteps
    assert deviation == pytest.approx(DEVIATION, abs=0.15)


def test_the_table_is_the_catalogue_s() -> None:
    """Every scheduler that can be asked for is in it, and docs/worker.md shows it."""
    assert {class_name for _, class_name in SUPPORTED} == set(SCHEDULERS.values())
    text = (Path(__file__).parents[2] / "docs" / "worker.md").read_text(encoding="utf-8")
    for name, class_name in SCHEDULERS.items():
        predictions = ", ".join(f"`{each}`" for each in ("epsilon", "v_prediction", "sample")
                                if each in SUPPORTED["diffusion", class_name])  # fmt: skip
        assert f"| `{name}` | {predictions} |" in text
    for classes in FAMILIES.values():
        for class_name in classes:
            assert f"`{class_name}`" in text


@pytest.mark.parametrize("own_class", FOREIGN)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_models_of_other_families_are_refused_by_name(name: str, own_class: str) -> None:
    """Also where their config could be read as that of a table of betas."""
    with pytest.raises(BadDataError, match=own_class):
        build_scheduler(SD, SCHEDULERS[name], own_class)


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "Heun"])
@pytest.mark.parametrize("clip", [None, True])
@pytest.mark.parametrize("own_class", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_latents_are_not_clipped(own_class: str, clip: bool | None, name: str) -> None:
    """Whether the config has no word on it, or says so."""
    config = SD if clip is None else {**SD, "clip_sample": True, "thresholding": True}
    scheduler = build_scheduler(config, SCHEDULERS[name], own_class)
    assert not scheduler.config.clip_sample
    dry_run(scheduler, 10)


@pytest.mark.parametrize(
    ("config", "name", "steps", "reason"),
    [
        ({"timestep_spacing": "leading"}, "DDIM", 1000, "fails by itself"),
        ({"timestep_spacing": "leading"}, "UniPC", 1000, "fails|visits only"),
        ({"timestep_spacing": "leading", "steps_offset": 0}, "DPM-Solver++", 1000, "fails|visits only"),
        ({"timestep_spacing": "leading"}, "DPM-Solver++", 999, "trained at 0 to 999"),
        ({"timestep_spacing": "linspace"}, "DPM-Solver++", 1000, "visits only 999"),
        ({"timestep_spacing": "leading"}, "DDIM", 1, "begins at timestep 1,"),
        ({"timestep_spacing": "sideways"}, "DDIM", 20, "fails by itself"),
        ({"timestep_type": "continuous"}, "Euler", 20, "timestep_type = 'continuous'"),
        ({"use_flow_sigmas": True}, "UniPC", 20, "use_flow_sigmas = True"),
        ({"rescale_betas_zero_snr": True}, "LMS", 20, "zero signal"),
        ({"beta_schedule": "banana"}, "DDIM", 20, "can't be made"),
        ({"beta_start": 0.0001, "beta_end": 0.00011}, "DDIM", 20, "begins at timestep"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "DDIM", 20, "does not arrive|fails"),
    ],
)
def test_what_would_not_sample_is_refused(config: dict[str, Any], name: str, steps: int, reason: str) -> None:
    """With what is wrong, before anything is measured."""
    with pytest.raises(BadDataError, match=reason):
        dry_run(build_scheduler({**SD, **config}, SCHEDULERS[name], "EulerDiscreteScheduler"), steps)


def test_timesteps_are_told_as_they_are() -> None:
    """With leading spacing multistep solvers begin earlier than DDIM, PNDM is at one twice, Heun at most of them."""
    config = {**SD, "timestep_spacing": "leading"}

    def visited(name: str) -> tuple[float, ...]:
        return dry_run(build_scheduler(config, SCHEDULERS[name], "DDIMScheduler"), 100).timesteps

    assert [visited(name)[0] for name in ("DDIM", "DPM-Solver++", "DEIS", "UniPC")] == [991, 901, 901, 901]
    pndm = visited("PNDM")
    assert len(pndm) == 101
    assert Counter(pndm)[981.0] == 2
    assert len(visited("Heun")) == 199


def test_it_is_refused_before_anything_is_loaded(tmp_path: Path, make_settings: MakeSettings) -> None:
    """By the files alone: there are no weights in this folder. What the index and the file say both counts."""
    (tmp_path / "scheduler").mkdir()
    index, config = tmp_path / "model_index.json", tmp_path / "scheduler" / "scheduler_config.json"
    asked = make_settings(pipe="mine", source=str(tmp_path), sched="DDIM", scorer="")
    check_schedule(asked)  # no file, no word
    for by_index, by_file in (("FlowMatchEulerDiscreteScheduler", None), ("DDIMScheduler", "EDMEulerScheduler")):
        index.write_text(json.dumps({"scheduler": ["diffusers", by_index]}))
        config.write_text(json.dumps({**SD, "_class_name": by_file}))
        with pytest.raises(BadDataError, match=by_file or by_index):
            check_schedule(asked)
    config.write_text("[]")
    assert read_own_scheduler(tmp_path) is None
    own = read_own_scheduler(model_folder("digits-sdxl"))
    assert own is not None
    assert own.classes == ("EulerDiscreteScheduler",)
    for options in ({"pipe": "SDXL", "weights": "random"}, {"pipe": "digits-sd15"}):
        with pytest.raises(BadDataError, match="1000 steps"):
            check_schedule(make_settings(**options, steps=1000))


ODD: dict[str, list[Any]] = {
    "num_train_timesteps": [1000, 1000, 100, 500],
    "beta_start": [0.00085, 0.0001, 0.01, 0.0, -1.0, math.nan, "0.1"],
    "beta_end": [0.012, 0.02, 0.00085, 0.5, 1.0, 2.0],
    "beta_schedule": ["scaled_linear", "linear", "squaredcos_cap_v2", "sigmoid", "exp", "none"],
    "trained_betas": [None, [0.01] * 100, [0.5, 0.1]],
    "prediction_type": ["epsilon", "v_prediction", "sample", "flow_prediction", "original_sample", "v", None, 3],
    "timestep_spacing": ["leading", "linspace", "trailing", "sideways"],
    "steps_offset": [0, 1, 2, -5, 1000],
    "clip_sample": [True, False, None],
    "clip_sample_range": [1.0, 4.0, 0.0],
    "thresholding": [True, False],
    "sample_max_value": [1.0, 3.0],
    "set_alpha_to_one": [True, False],
    "rescale_betas_zero_snr": [True, False],
    "use_karras_sigmas": [True, False],
    "use_exponential_sigmas": [True, False],
    "use_beta_sigmas": [True, False],
    "use_flow_sigmas": [True, False],
    "use_dynamic_shifting": [True, False],
    "final_sigmas_type": ["zero", "sigma_min"],
    "algorithm_type": ["dpmsolver++", "sde-dpmsolver++", "deis", "dpmsolver"],
    "solver_type": ["midpoint", "heun", "bh1", "bh2", "logrho", "dpmsolver"],
    "solver_order": [1, 2, 3],
    "lower_order_final": [True, False],
    "skip_prk_steps": [True, False],
    "variance_type": ["fixed_small", "fixed_large", "learned", "learned_range", None],
    "timestep_type": ["discrete", "continuous"],
    "interpolation_type": ["linear", "log_linear"],
    "sigma_min": [None, 0.03],
    "sigma_max": [None, 14.6, 700.0],
    "predict_x0": [True, False],
    "lambda_min_clipped": [-math.inf, -5.1],
    "shift": [3.0],
    "sigma_data": [0.5],
    "unknown_key": [1],
}
"""What a config may say, right and wrong."""

configs = st.fixed_dictionaries(
    {}, optional={key: st.sampled_from(values) for key, values in ODD.items() if key not in SD}
).flatmap(
    lambda odd: (
        st.sets(st.sampled_from(sorted(odd)), max_size=4).map(lambda keep: {key: odd[key] for key in keep})
        if odd
        else st.just({})
    )
)
noise = st.one_of(
    st.just(SD), st.just({}), st.fixed_dictionaries({key: st.sampled_from(ODD[key]) for key in SD if key in ODD})
)
steps_asked = st.integers(0, 15).flatmap(lambda of: st.integers(61, 1000) if of == 15 else st.integers(1, 40))


PHASES = (Phase.explicit, Phase.generate)
"""A failing config is short as it is, and shrinking it takes minutes."""


def judge(own_class: str, config: dict[str, Any], name: str, steps: int) -> bool:
    """Whether it was accepted, having checked that this was right."""
    class_name = SCHEDULERS[name]
    try:
        scheduler = build_scheduler(config, class_name, own_class)
        result = dry_run(scheduler, steps)
    except BadDataError as error:
        said = str(error)
        if class_name not in said and own_class not in said:
            raise AssertionError(f"neither scheduler is named: {said}") from error
        return False
    compatible = getattr(diffusers, own_class)._compatibles
    assert class_name in compatible, f"{own_class} and {class_name} don't go together"
    assert scheduler.config.prediction_type == config.get("prediction_type", "epsilon")
    # Few steps, or from noise of thousands as in a cosine schedule, can't shape a distribution, but must find a point.
    is_coarse = steps < 10 or config.get("beta_schedule") == "squaredcos_cap_v2"
    asked, mean, deviation = sample_gaussian(scheduler, steps, 1e-6 if is_coarse else DEVIATION)
    assert list(result.timesteps) == asked
    assert len(asked) >= steps
    assert all(0 <= timestep < scheduler.config.num_train_timesteps for timestep in asked)
    if not any(config.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta")):
        assert len(set(asked)) >= steps
    # The signal that the model expects to be there at the start, and that noise does not have, is missing in the end.
    missing = float(scheduler.alphas_cumprod[min(round(asked[0]), len(scheduler.alphas_cumprod) - 1)]) ** 0.5
    assert mean == pytest.approx(MEAN, abs=0.4 + 0.7 * MEAN * missing)
    assert deviation < 3 * DEVIATION
    return True


def variants(count: int) -> Any:
    """A test over that many configs, the known hard ones first."""

    def decorate(check: Any) -> Any:
        for own_class, config, name, steps in (
            ("EulerDiscreteScheduler", SD, "DDIM", 20),
            ("DDIMScheduler", {**SD, "clip_sample": True}, "DDPM", 20),
            ("PNDMScheduler", SD, "UniPC", 1000),
            ("EDMEulerScheduler", {}, "DPM-Solver++", 20),
        ):
            check = example(own_class=own_class, odd=config, base={}, name=name, steps=steps)(check)
        check = given(
            own_class=st.one_of(st.sampled_from(OWN), st.sampled_from(OWN), st.sampled_from(FOREIGN)),
            base=noise,
            odd=configs,
            name=st.sampled_from(sorted(SCHEDULERS)),
            steps=steps_asked,
        )(check)
        return settings(max_examples=count, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))(
            check
        )

    return decorate


@variants(500)
def test_whatever_is_accepted_samples_rightly(
    own_class: str, base: dict[str, Any], odd: dict[str, Any], name: str, steps: int
) -> None:
    """Any model's config, right or wrong, with any scheduler and number of steps."""
    judge(own_class, {**base, **odd}, name, steps)


@pytest.mark.campaign
@pytest.mark.timeout(0)
@variants(20_000)
def test_whatever_is_accepted_samples_rightly_at_length(
    own_class: str, base: dict[str, Any], odd: dict[str, Any], name: str, steps: int
) -> None:
    """The same, of many more."""
    judge(own_class, {**base, **odd}, name, steps)


@settings(max_examples=100, deadline=None)
@given(
    own_class=st.sampled_from(OWN),
    name=st.sampled_from(sorted(SCHEDULERS)),
    steps=st.integers(4, 60),
    spacing=st.sampled_from(["leading", "linspace", "trailing", None]),
    prediction=st.sampled_from(["epsilon", "v_prediction"]),
    karras=st.booleans(),
)
def test_what_is_right_is_accepted(
    own_class: str, name: str, steps: int, spacing: str | None, prediction: str, karras: bool
) -> None:
    """SD's own noise, as any of its schedulers may word it: nothing of it is refused."""
    config = {**SD, "prediction_type": prediction, "use_karras_sigmas": karras}
    assert judge(own_class, config if spacing is None else {**config, "timestep_spacing": spacing}, name, steps)
