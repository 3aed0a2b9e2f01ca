"""What would make a bound mean nothing is refused or said: images of nothing, of a mixed batch, scores of noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from boundd.worker import search as search_module
from boundd.worker.digits import model_folder
from boundd.worker.digits.scorer import DigitsScorer
from boundd.worker.errors import BadDataError
from boundd.worker.image_checks import check_losses, check_prompts
from boundd.worker.methods import load_method
from boundd.worker.methods.base import Call, ModelContext, Parameters
from boundd.worker.methods.tome import ToMeMethod
from boundd.worker.pipelines import describe
from boundd.worker.quality import blank_images
from boundd.worker.sampling import Batch
from tests.worker.conftest import Load, MakeSettings
from tests.worker.test_search import QUICK, run


@given(
    level=st.floats(0, 1),
    noise=st.floats(0, 0.001),
    color=st.sampled_from([(1, 1, 1), (1, 0, 0), (0, 0, 0), (0.2, 0.5, 1)]),
)
@settings(max_examples=100, deadline=None)
def test_an_image_of_one_colour_is_known(level: float, noise: float, color: tuple[float, ...]) -> None:
    """Any colour, with the noise that a decoder leaves; a picture, however dark, is none."""
    flat = torch.tensor(color).view(3, 1, 1).expand(3, 8, 8) * level
    picture = flat.clone()
    picture[:, 2:5, 2:5] += 0.2
    jittered = flat + noise * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = blank_images(torch.stack([flat, jittered, picture]))
    assert found[0] is not None
    assert found[1] is not None
    assert found[2] is None
    assert blank_images(torch.zeros(1, 3, 4, 4)) == ["black"]
    assert blank_images(torch.ones(1, 3, 4, 4)) == ["white"]


def changed(tmp_path: Path, bias: float, keep: float = 0.0) -> str:
    """The digits model with a VAE that draws one colour, or `keep` of its picture."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder("digits-sd15"), folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.weight"] *= keep
    weights["decoder.conv_out.bias"] = weights["decoder.conv_out.bias"] * keep + bias
    save_file(weights, file, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(("bias", "colour"), [(-1.0, "black"), (1.0, "white"), (0.1, "of one colour")])
def test_a_decoder_that_draws_nothing_makes_no_bound(
    bias: float, colour: str, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """With a scorer or without, before a point is measured."""
    source, prompts = changed(tmp_path, bias), tmp_path / "prompts.txt"
    prompts.write_text("a handwritten seven\na 3\n", encoding="utf-8")
    for scorer in ("", "builtin"):
        with pytest.raises(BadDataError, match=f"2 {colour}"):
            run(make_settings(pipe="mine", source=source, scorer=scorer, prompts=str(prompts), **QUICK))


def test_a_baseline_no_better_than_noise_is_no_measure(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scorer that sees more in noise than in the images."""
    monkeypatch.setattr(DigitsScorer, "score", lambda _self, images, _prompts: torch.full((len(images),), 5.0))
    with pytest.raises(BadDataError, match=r"score 5\.0 on average, and noise 5\.0"):
        run(make_settings(**QUICK))


def test_a_gain_that_can_not_be() -> None:
    """Some gain is noise; thirty times the score says that the baseline was nothing."""
    check_losses([0.5, -0.9, None])
    with pytest.raises(BadDataError, match=r"31\.0 times"):
        check_losses([0.0, -30.0])


def test_prompts_that_are_not_read(load: Load) -> None:
    """A prompt that names no digit can't be judged; one that is too long is told with how much is read."""
    pipe = load("digits-sd15", "DDIM")
    scorer = DigitsScorer()
    with pytest.raises(BadDataError, match="'a cat'"):
        check_prompts(pipe, scorer, [Batch(("a seven", "a cat"), (0, 1))])
    assert check_prompts(pipe, None, [Batch(("a cat",), (0,))]) == []
    (remark,) = check_prompts(pipe, scorer, [Batch(("a handwritten seven", "a seven " + "in ink " * 40), (0, 1))])
    assert "reads 16 tokens, and 1 of 2 prompts are longer" in remark


class Mixing(ToMeMethod):
    """ToMe, and every image is half the one before it in its batch: what T-GATE does to unguided pairs."""

    @contextmanager
    def applied(self, pipe: Any, parameters: Parameters, call: Call) -> Iterator[Call]:
        """Mix them."""

        def mixed(*arguments: Any, **options: Any) -> Any:
            output = inner(*arguments, **options)
            output.images = (output.images + output.images.roll(1, 0)) / 2
            return output

        with super().applied(pipe, parameters, call) as inner:
            yield mixed


def test_images_of_a_mixed_batch_are_refused(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image made alone is another one than in its batch."""
    monkeypatch.setattr(search_module, "combine", lambda _: Mixing())
    with pytest.raises(BadDataError, match="made alone instead of in a batch of 2"):
        run(make_settings(search_targets="tome", num_samples=2, batch_size=2, **QUICK))


def test_a_result_says_what_was_used(make_settings: MakeSettings) -> None:
    """The model's own resolution, the batch that there were samples for, the timesteps that were visited, guidance."""
    result = run(make_settings(num_samples=2, batch_size=16, sched="DPM-Solver++", guidance_scale=1.0, **QUICK))[1]
    extra = result.extra
    assert (extra["resolution"], extra["batch_size"], extra["guidance"]) == (32, 2, "off")
    assert extra["timesteps"] == [853, 711, 569, 427, 285, 143]
    assert isinstance(extra["batch_dependence"], float)
    assert extra["batch_dependence"] < 0.001
    assert extra["warnings"] == []


def test_a_distilled_unet_is_seen_to_be_unguided(tmp_path: Path, make_settings: MakeSettings) -> None:
    """Whatever the scale: T-GATE is refused, and others are told."""
    folder = tmp_path / "distilled"
    shutil.copytree(model_folder("digits-sd15"), folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": 8}))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    inputs = weights["time_embedding.linear_1.weight"].shape[1]
    weights["time_embedding.cond_proj.weight"] = torch.zeros(inputs, 8)
    save_file(weights, file, metadata={"format": "pt"})
    options = {"pipe": "mine", "source": str(folder), "scorer": "", "num_samples": 2, "batch_size": 2}
    with pytest.raises(BadDataError, match="not guided whatever the scale"):
        run(make_settings(**options, search_targets="tgate", **QUICK))
    result = run(make_settings(**options, **QUICK))[1]
    assert result.extra["guidance"] == "off"
    assert any("distilled" in str(warning) for warning in result.extra["warnings"])  # type: ignore[union-attr]


def test_guards_look_at_the_timesteps_that_run(load: Load, make_settings: MakeSettings) -> None:
    """PNDM is of first order, and visits one timestep twice."""
    context = describe(load("digits-sd15", "PNDM"), make_settings(steps=8))
    assert context.scheduler_order == 1
    assert context.repeated_timestep == 751
    assert "timestep 751 more than once" in (load_method("deepcache").requires(context) or "")
    assert "9 calls in 8 steps" in (load_method("tgate").requires(context) or "")
    assert load_method("tome").requires(context) is None
    plain: ModelContext = describe(load("digits-sd15", "DDIM"), make_settings(steps=8))
    assert plain.timesteps == (876, 751, 626, 501, 376, 251, 126, 1)
    assert plain.is_guided
    assert load_method("deepcache").requires(plain) is load_method("tgate").requires(plain) is None
