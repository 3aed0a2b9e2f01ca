"""The three built-in models: they load with no network, are built like the real ones, and draw legible digits."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from boundd.worker.digits import DIGIT_WORDS, MODEL_NAMES, PROMPTS, model_folder, scorer_folder
from boundd.worker.digits.pipelines import encode_prompts
from boundd.worker.digits.scorer import DigitsScorer
from tools.digits.measure import SCHEDULERS, folder_bytes, generate, share_recognised

Loader = Callable[[str], Any]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_model_loads_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_pretrained` on the folder opens no connection, and finds safetensors only."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    pipeline = DiffusionPipeline.from_pretrained(model_folder(name))
    expected = StableDiffusionXLPipeline if name == "digits-sdxl" else StableDiffusionPipeline
    assert type(pipeline) is expected
    assert not [file for file in model_folder(name).rglob("*") if file.suffix in {".bin", ".pt", ".ckpt"}]


def test_everything_together_is_under_20_mb() -> None:
    """The models and the scorer are part of every installed package."""
    assert folder_bytes(scorer_folder().parent) < 20_000_000


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_no_configuration_names_a_path(name: str) -> None:
    """What was a folder of the machine that trained them is nobody's business, nor of use."""
    for file in model_folder(name).rglob("*.json"):
        assert "_name_or_path" not in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize(
    ("name", "prediction_type", "linear", "first_block"),
    [
        ("digits-sd15", "epsilon", False, "CrossAttnDownBlock2D"),
        ("digits-sd21", "v_prediction", True, "CrossAttnDownBlock2D"),
        ("digits-sdxl", "epsilon", True, "DownBlock2D"),
    ],
)
def test_the_structure_is_that_of_the_real_model(
    shipped_pipeline: Loader, name: str, prediction_type: str, *, linear: bool, first_block: str
) -> None:
    """What sets the three apart: the prediction, the projections, the first level; and a true scaling factor."""
    pipeline = shipped_pipeline(name)
    assert pipeline.scheduler.config.prediction_type == prediction_type
    assert pipeline.scheduler.config.clip_sample is False
    assert pipeline.unet.config.use_linear_projection is linear
    assert pipeline.unet.config.down_block_types[0] == first_block
    projections = [m.proj_in for m in pipeline.unet.modules() if hasattr(m, "proj_in")]
    assert {type(projection) for projection in projections} == {torch.nn.Linear if linear else torch.nn.Conv2d}
    assert pipeline.vae.config.scaling_factor != 0.18215
    assert getattr(pipeline, "safety_checker", None) is None


def test_sd21_has_its_own_heads_and_text_encoder(shipped_pipeline: Loader) -> None:
    """A list of heads, another activation, another width, padding with "!"."""
    one, other = shipped_pipeline("digits-sd15"), shipped_pipeline("digits-sd21")
    assert isinstance(one.unet.config.attention_head_dim, int)
    assert isinstance(other.unet.config.attention_head_dim, list)
    assert (one.text_encoder.config.hidden_act, other.text_encoder.config.hidden_act) == ("quick_gelu", "gelu")
    assert other.text_encoder.config.hidden_size != one.text_encoder.config.hidden_size
    assert (one.tokenizer.pad_token, other.tokenizer.pad_token) == ("<|endoftext|>", "!")


def test_sdxl_reads_two_encoders_a_pooled_embedding_and_time_ids(shipped_pipeline: Loader) -> None:
    """And every one of them makes a difference to what its UNet predicts."""
    pipeline = shipped_pipeline("digits-sdxl")
    assert type(pipeline.text_encoder).__name__ == "CLIPTextModel"
    assert type(pipeline.text_encoder_2).__name__ == "CLIPTextModelWithProjection"
    assert pipeline.unet.config.addition_embed_type == "text_time"
    assert pipeline.config.force_zeros_for_empty_prompt
    widths = pipeline.text_encoder.config.hidden_size + pipeline.text_encoder_2.config.hidden_size
    assert pipeline.unet.config.cross_attention_dim == widths

    arguments = encode_prompts(pipeline, ["the digit 7"]).unet_arguments()
    added = arguments["added_cond_kwargs"]
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))

    def predicted(hidden: torch.Tensor, pooled: torch.Tensor, time_ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return pipeline.unet(
                latents,
                500,
                encoder_hidden_states=hidden,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            ).sample

    hidden, pooled, time_ids = arguments["encoder_hidden_states"], added["text_embeds"], added["time_ids"]
    plain = predicted(hidden, pooled, time_ids)
    assert torch.equal(plain, predicted(hidden, pooled, time_ids))
    assert not torch.equal(plain, predicted(torch.zeros_like(hidden), pooled, time_ids))
    assert not torch.equal(plain, predicted(hidden, torch.zeros_like(pooled), time_ids))
    assert not torch.equal(plain, predicted(hidden, pooled, 2 * time_ids))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_digits_have_tokens_of_their_own_and_strange_words_do_no_harm(shipped_pipeline: Loader, name: str) -> None:
    """Twenty digit tokens, all different; other words and other scripts fall apart into letters."""
    pipeline = shipped_pipeline(name)
    for tokenizer in (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", pipeline.tokenizer)):
        names = [*DIGIT_WORDS, *map(str, range(10))]
        encoded = [tokenizer(digit).input_ids for digit in names]
        assert {len(ids) for ids in encoded} == {3}, "start, the digit, end"
        assert len({ids[1] for ids in encoded}) == 20
        strange = tokenizer("zebra xylophone, 漢字 €", padding="max_length", truncation=True).input_ids
        assert len(strange) == tokenizer.model_max_length
        assert max(strange) < len(tokenizer)
    assert encode_prompts(pipeline, ["zebra xylophone, 漢字 €"]).hidden.isfinite().all()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_images_are_legible(shipped_pipeline: Loader, scorer: DigitsScorer, name: str, scheduler: str) -> None:
    """20 images in 12 steps: at least 70% show the digit of their prompt."""
    pipeline = shipped_pipeline(name)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    prompts = PROMPTS[:20]
    images = generate(pipeline, prompts, steps=12, guidance_scale=5.0)
    assert images.shape == (20, 3, 32, 32)
    assert share_recognised(scorer.classify, images, prompts) >= 0.7
    # The judge reads the image and not the prompt: against the next prompt's digit the same images fail.
    assert share_recognised(scorer.classify, images, [*prompts[1:], prompts[0]]) <= 0.2


def test_noise_is_not_legible(scorer: DigitsScorer, noise: torch.Tensor) -> None:
    """The control: what shows no digit is not recognised as the one that was asked for."""
    assert share_recognised(scorer.classify, noise, PROMPTS[:20]) <= 0.3
    assert scorer.score(noise, PROMPTS[:20]).mean() < 10


def test_guidance_and_the_prompt_matter(shipped_pipeline: Loader, scorer: DigitsScorer) -> None:
    """The same noise with another prompt is another digit."""
    pipeline = shipped_pipeline("digits-sd15")
    for prompt in ("a handwritten digit seven", "the digit 3"):
        images = generate(pipeline, [prompt] * 8, steps=12, guidance_scale=3.0)
        assert scorer.accuracy(images, [prompt] * 8) >= 0.75
