"""The true architectures with random weights: their sizes, their values, and what a run with them says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from boundd.protocol.environment import WorkerEnvironment
from boundd.protocol.lines import Point, Result
from boundd.worker.architectures import ARCHITECTURES, Architecture, build_pipeline, module_builders
from boundd.worker.architectures.configurations import MAX_TOKENS, VOCABULARY_SIZE
from boundd.worker.architectures.tokenizer import build_tokenizer
from boundd.worker.architectures.weights import materialise
from boundd.worker.devices import open_device
from boundd.worker.methods import load_method
from boundd.worker.pipelines import describe, load_pipeline
from boundd.worker.search import Search
from boundd.worker.settings import SettingsError, resolve
from tests.worker.conftest import MakeSettings

# Published counts: the models' cards and the sizes of their safetensors files on the hub.
PARAMETERS = {
    ("SD1.5", "unet"): 859_520_964,
    ("SD2.1", "unet"): 865_910_724,
    ("SDXL", "unet"): 2_567_463_684,
    ("SD1.5", "vae"): 83_653_863,
    ("SD2.1", "vae"): 83_653_863,
    ("SDXL", "vae"): 83_653_863,
    ("SD1.5", "text_encoder"): 123_060_480,
    ("SD2.1", "text_encoder"): 340_387_840,
    ("SDXL", "text_encoder"): 123_060_480,
    ("SDXL", "text_encoder_2"): 694_659_840,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """As the worker does: with more, threads that wait for a busy core take longer than one that computes."""
    torch.set_num_threads(1)


def narrow(architecture: Architecture) -> Architecture:
    """The same levels, blocks and kinds of layers with a tenth of the channels, for tests of a few megabytes."""
    unet = dict(architecture.unet)
    channels = tuple(width // 10 for width in unet["block_out_channels"])
    encoders = tuple(
        replace(encoder, config={**encoder.config, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
                                 "num_attention_heads": 4, "projection_dim": 32})
        for encoder in architecture.text_encoders
    )  # fmt: skip
    unet |= {"block_out_channels": channels, "cross_attention_dim": 32 * len(encoders), "norm_num_groups": 8}
    unet["attention_head_dim"] = 4
    if architecture.is_xl:
        unet["projection_class_embeddings_input_dim"] = 6 * unet["addition_time_embed_dim"] + 32
    vae = {**architecture.vae, "block_out_channels": (8, 16, 32, 32), "norm_num_groups": 8}
    return replace(architecture, unet=unet, vae=vae, text_encoders=encoders)


def generate(pipe: Any, side_px: int = 64, steps: int = 3) -> torch.Tensor:
    """Two guided images."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images: torch.Tensor = pipe(
        ["a cat", "two dogs on a very red sofa"],
        num_inference_steps=steps,
        guidance_scale=7.5,
        height=side_px,
        width=side_px,
        generator=generators,
        output_type="pt",
    ).images
    return images


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    """To the last one, on the meta device, which takes no memory."""
    builders = module_builders(ARCHITECTURES[name])
    assert {(name, part) for part in builders} == {key for key in PARAMETERS if key[0] == name}
    for part, build in builders.items():
        with torch.device("meta"):
            module = build()
        assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[name, part], part


@pytest.mark.parametrize("pad_token", ["!", "<|endoftext|>"])
def test_the_tokenizer_has_clips_shape(pad_token: str) -> None:
    """Its size, its marks at CLIP's ids, and an id for whatever a prompt holds; CLIP's own ids for letters."""
    tokenizer = build_tokenizer(pad_token)
    assert len(tokenizer) == VOCABULARY_SIZE
    prompts = ["", "a cat!", "naïve ☃ 汉字 \U0001f600", "x" * 1000]
    ids = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    assert ids.shape == (len(prompts), MAX_TOKENS)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < VOCABULARY_SIZE
    assert ids[:, 0].tolist() == [49406] * len(prompts)
    assert ids[3, -1] == 49407
    # openai/clip-vit-large-patch14's vocabulary: "a</w>" is 320 and "c" 66
    assert ids[1, 1:3].tolist() == [320, 66]
    assert ids[0, 2] == {"!": 0, "<|endoftext|>": 49407}[pad_token]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activations_stay_finite_through_a_whole_pipeline(name: str, dtype: str) -> None:
    """In every dtype, and the images are pictures of something: neither flat nor all at the ends of the range."""
    images = generate(build_pipeline(narrow(ARCHITECTURES[name]), "cpu", dtype, seed=1)).float()
    assert torch.isfinite(images).all()
    assert float(images.std()) > 0.01
    assert float(((images > 0) & (images < 1)).float().mean()) > 0.5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_weights_follow_from_the_seed(name: str) -> None:
    """The same seed, the same images; another, others; and nothing is drawn from torch's own generator."""
    architecture = narrow(ARCHITECTURES[name])
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = build_pipeline(architecture, "cpu", "float32", seed=1)
    assert torch.rand(1) == expected
    same = build_pipeline(architecture, "cpu", "float32", seed=1)
    other = build_pipeline(architecture, "cpu", "float32", seed=2)
    assert torch.equal(generate(first), generate(same))
    assert not torch.equal(generate(first), generate(other))


def test_parts_are_where_and_as_they_were_asked_for() -> None:
    """Every parameter in the dtype asked for, nothing left on the meta device, nothing to train."""
    pipe = build_pipeline(narrow(ARCHITECTURES["SDXL"]), "cpu", "bfloat16", seed=1)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert not module.training
        for tensor in (*module.parameters(), *module.buffers()):
            assert tensor.device.type == "cpu"
            assert not tensor.requires_grad
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


def test_a_buffer_that_nobody_knows_is_an_error() -> None:
    """It would hold whatever was in memory."""
    with pytest.raises(ValueError, match="running_mean"):
        materialise(lambda: torch.nn.Sequential(torch.nn.BatchNorm2d(3)), "cpu", torch.float32, 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_methods_fit_the_architectures(name: str, make_settings: MakeSettings) -> None:
    """What the methods are told of the structure, and their identities change nothing."""
    pipe = build_pipeline(narrow(ARCHITECTURES[name]), "cpu", "float32", seed=1)
    # SD1.5's own is PNDM, which visits a timestep twice: DeepCache refuses it.
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    context = describe(pipe, make_settings(steps=3))
    assert context.attention_downsamples == ((2, 4) if name == "SDXL" else (1, 2, 4))
    assert context.cache_branches == (8 if name == "SDXL" else 11)
    plain = generate(pipe)
    for method in map(load_method, ("deepcache", "tgate", "tome")):
        assert method.requires(context) is None
        with method.applied(pipe, method.identity(context), pipe) as call:
            assert torch.equal(generate_with(pipe, call), plain), method.name
        assert torch.equal(generate(pipe), plain), method.name


def generate_with(pipe: Any, call: Any) -> torch.Tensor:
    """`generate` by what a method made of the pipeline."""

    class Called:
        set_progress_bar_config = staticmethod(pipe.set_progress_bar_config)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return call(*arguments, **options)

    return generate(Called())


OPTIONS = {"sched": "DDIM", "steps": 4, "search_targets": "deepcache", "weights": "random"}


@pytest.mark.parametrize(("pipe", "source", "built"), [("SD1.5", None, "SD1.5"), ("SDXL", "some/hub-id", "SDXL"),
                                                       ("mine", "SD2.1", "SD2.1")])  # fmt: skip
def test_which_architecture_is_built(pipe: str, source: str | None, built: str) -> None:
    """The source's where it names one, else the model's own; the config's scorer is left aside."""
    environment = WorkerEnvironment(scorer={"source": "some/clip"})
    settings = resolve(OPTIONS | {"pipe": pipe, "source": source}, environment)
    assert (settings.source, settings.weights, settings.scorer) == (built, "random", "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pipe": "digits-sd15"}, "no architecture"),
        ({"pipe": "mine", "source": "some/hub-id"}, "no architecture"),
        ({"pipe": "SD1.5", "scorer": "some/clip"}, "nothing that could be scored"),
    ],
)
def test_random_weights_that_cannot_be(change: dict[str, str], reason: str) -> None:
    """What has no architecture here, and a score that was asked for in so many words."""
    with pytest.raises(SettingsError, match=reason):
        resolve(OPTIONS | change, WorkerEnvironment())


class Recorder:
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def report(self, line: Any) -> None:
        """Keep it."""
        self.lines.append(line)


def test_a_search_with_random_weights_says_so_and_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrowed, so that it takes seconds: speeds are measured, no score is, so no bound within a tolerance is given."""
    small = {"SD2.1": narrow(ARCHITECTURES["SD2.1"])}
    monkeypatch.setattr("boundd.worker.pipelines.ARCHITECTURES", small)
    options = {"pipe": "SD2.1", "search_targets": "tome", "resolution": 64, "num_samples": 2, "batch_size": 1}
    options |= {"device": "cpu", "grid": "coarse", "repeats": 2, "max_repeats": 2}
    recorder = Recorder()
    Search(resolve(OPTIONS | options, WorkerEnvironment()), WorkerEnvironment(), recorder).run()
    result = recorder.lines[-1]
    assert isinstance(result, Result)
    assert result.extra["weights"] == "random"
    assert result.extra["attention"] == "sdpa"
    assert result.extra["scorer"] is None
    assert result.max_speedup_within_tolerance is None
    assert result.max_speedup is not None
    points = [line for line in recorder.lines if isinstance(line, Point)]
    assert points
    assert all(point.score_loss is None for point in points)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_call_at_the_true_size(make_settings: MakeSettings) -> None:
    """SD1.5 as it is, in float32: it is built, makes a finite image, and took no memory beyond its weights."""
    settings = make_settings(pipe="SD1.5", weights="random", scorer=None)
    pipe = load_pipeline(settings, open_device(settings, None))
    assert sum(parameter.numel() for parameter in pipe.unet.parameters()) == PARAMETERS["SD1.5", "unet"]
    assert torch.isfinite(generate(pipe, side_px=64, steps=2)).all()
