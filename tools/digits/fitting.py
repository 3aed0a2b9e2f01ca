"""The training loops, one for each network; each is seeded and runs on the CPU."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  (the name that torch's own documentation uses)
from diffusers.training_utils import EMAModel
from torch import nn
from transformers import CLIPTokenizer

from boundd.worker.digits.libraries import Autoencoder, NoiseScheduler, TextEncoder, UNet
from boundd.worker.digits.pipelines import Conditioning
from boundd.worker.digits.prompts import TEMPLATES, written_digit
from boundd.worker.digits.scorer import DIGITS, DigitsScorer
from boundd.worker.digits.tokenizer import FILLER_WORDS
from tools.digits.data import LabelledImages

Report = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """How long one network is trained: optimiser steps, images (or prompts) a step, the highest learning rate."""

    steps: int
    batch_size: int
    peak_learning_rate: float


_REPORTS_A_RUN: Final = 10
_WARM_UP_SHARE: Final = 0.05
_WEIGHT_DECAY: Final = 1e-4
_GRADIENT_NORM_LIMIT: Final = 1.0


def _minimise(
    network: nn.Module, budget: Budget, loss_of_step: Callable[[], torch.Tensor], report: Report
) -> Iterator[int]:
    """Train `network` by AdamW, its learning rate rising shortly and falling along a cosine; yields after each step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=budget.peak_learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=budget.peak_learning_rate,
        total_steps=budget.steps + 1,
        # A run of a handful of steps has to have a whole step to rise in.
        pct_start=max(_WARM_UP_SHARE, 2.0 / (budget.steps + 1)),
    )
    report_every = max(1, budget.steps // _REPORTS_A_RUN)
    running_loss = 0.0
    for step in range(1, budget.steps + 1):
        loss = loss_of_step()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_NORM_LIMIT)
        optimizer.step()
        schedule.step()
        running_loss += loss.item() / report_every
        if step % report_every == 0:
            report(f"step {step} of {budget.steps}, loss {running_loss:.4f}")
            running_loss = 0.0
        yield step


def _run(steps: Iterator[int]) -> None:
    """Train to the end, with nothing to do between the steps."""
    for _ in steps:
        pass


def _drawn(data: LabelledImages, batch_size: int) -> LabelledImages:
    """A random batch, with replacement."""
    index = torch.randint(len(data), (batch_size,))
    return LabelledImages(data.images[index], data.digits[index])


# --- the scorer


_COSINE_SCALE: Final = 12.0
_SHIFT_SHARE: Final = 0.1
_TURN_RADIANS: Final = 0.15
_SCALE_SHARE: Final = 0.1


def _jittered(images: torch.Tensor) -> torch.Tensor:
    """The images a little turned, scaled and shifted, on white: (n, 3, h, w) in [0, 1] -> the same."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * _TURN_RADIANS
    scale = 1 + (torch.rand(count) * 2 - 1) * _SCALE_SHARE
    shift = (torch.rand(count, 2) * 2 - 1) * 2 * _SHIFT_SHARE
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = (torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # Sampled as ink, because what comes in from outside the image is 0.
    return 1 - F.grid_sample(1 - images, grid, align_corners=False)


def _no_digits(images: torch.Tensor) -> torch.Tensor:
    """Images that show no digit, made of ones that do: noise, blank paper, shuffled pieces; (n, 3, 32, 32)."""
    count, _, height, width = images.shape
    noise = (0.5 + torch.randn_like(images) * torch.rand(count, 1, 1, 1)).clamp(0, 1)
    grey = F.interpolate(torch.rand(count, 1, 8, 8), size=(height, width), mode="bicubic").clamp(0, 1)
    blank = torch.rand(count, 1, 1, 1).expand_as(images)
    pieces = images.unfold(2, 8, 8).unfold(3, 8, 8).reshape(count, 3, 16, 8, 8)[:, :, torch.randperm(16)]
    shuffled = pieces.reshape(count, 3, 4, 4, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(images.shape)
    kinds = torch.stack([noise, grey.expand_as(images), blank, shuffled])
    return kinds[torch.randint(len(kinds), (count,)), torch.arange(count)]


def fit_scorer(scorer: DigitsScorer, data: LabelledImages, budget: Budget, report: Report) -> None:
    """Train the scorer to tell the digits apart, and to find none where there is none."""

    def loss_of_step() -> torch.Tensor:
        batch = _drawn(data, budget.batch_size)
        images = _jittered(batch.images)
        images = (images + 0.1 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)).clamp(0, 1)
        cosines = scorer(images)
        told_apart: torch.Tensor = F.cross_entropy(_COSINE_SCALE * cosines, batch.digits)
        found_anyway: torch.Tensor = scorer(_no_digits(batch.images)).clamp(min=0).square().sum(dim=1).mean()
        return told_apart + found_anyway

    scorer.train()
    _run(_minimise(scorer, budget, loss_of_step, report))
    scorer.eval()


# --- the autoencoder


_KL_WEIGHT: Final = 1e-4


def fit_vae(vae: Autoencoder, data: LabelledImages, budget: Budget, report: Report) -> None:
    """Train the autoencoder, and set its scaling factor so that latents have a standard deviation of 1."""

    def loss_of_step() -> torch.Tensor:
        pixels = 2 * _jittered(_drawn(data, budget.batch_size).images) - 1
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        # The latents' own distribution is held near N(0, 1), which is where a diffusion starts from.
        difference = F.mse_loss(decoded, pixels)
        divergence: torch.Tensor = posterior.kl().mean() / posterior.mean[0].numel()
        return difference + _KL_WEIGHT * divergence

    vae.train()
    _run(_minimise(vae, budget, loss_of_step, report))
    vae.eval()
    vae.register_to_config(scaling_factor=1.0)
    vae.register_to_config(scaling_factor=round(1.0 / encode_images(vae, data.images).std().item(), 4))


@torch.no_grad()
def encode_images(vae: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    """Images (n, 3, 32, 32) in [0, 1] -> scaled latents (n, 4, 8, 8), each the mean of its distribution."""
    latents: torch.Tensor = vae.encode(2 * images - 1).latent_dist.mean * vae.config.scaling_factor
    return latents


# --- the text encoders


_LONGEST_FILLER_WORDS: Final = 9
_SENTENCES_A_DIGIT: Final = 300


def training_prompts(per_digit: int, seed: int) -> list[tuple[str, int]]:
    """Prompts and the digits they name: every template, then digits among random words, `per_digit` of these each."""
    draw = random.Random(seed)  # noqa: S311  (nothing secret hangs on it)
    prompts = []
    for digit in range(DIGITS):
        for as_word in (True, False):
            name = written_digit(digit, as_word=as_word)
            prompts += [(template.format(name), digit) for template in TEMPLATES]
        for _ in range(per_digit):
            words = draw.choices(FILLER_WORDS, k=draw.randint(0, _LONGEST_FILLER_WORDS))
            words.insert(draw.randint(0, len(words)), written_digit(digit, as_word=draw.random() < 0.5))
            prompts.append((" ".join(words), digit))
    return prompts


def fit_text_encoder(
    encoder: TextEncoder,
    tokenizer: CLIPTokenizer,
    budget: Budget,
    seed: int,
    report: Report,
) -> None:
    """Train the encoder to carry the digit, wherever in the prompt it is named, into its pooled embedding."""
    prompts = training_prompts(_SENTENCES_A_DIGIT, seed)
    tokens = tokenizer(
        [prompt for prompt, _ in prompts], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    digits = torch.tensor([digit for _, digit in prompts])
    head = nn.LazyLinear(DIGITS)

    def loss_of_step() -> torch.Tensor:
        index = torch.randint(len(tokens), (budget.batch_size,))
        output = encoder(tokens[index])
        pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
        return F.cross_entropy(head(pooled), digits[index])

    encoder.train()
    loss_of_step()  # the first call gives the head its size
    _run(_minimise(nn.ModuleList([encoder, head]), budget, loss_of_step, report))
    encoder.eval()


# --- the UNet


_DROPPED_SHARE: Final = 0.12
_EMA_DECAY: Final = 0.995


@dataclass(frozen=True)
class TrainingSet:
    """Latents (n, 4, 8, 8) and their digits (n,); prompts' conditioning, and the rows of it that fit each digit.

    `rows_of_digit` is (10, prompts a digit); `empty_rows` are the ways in which "no prompt" is said.
    """

    latents: torch.Tensor
    digits: torch.Tensor
    conditioning: Conditioning
    rows_of_digit: torch.Tensor
    empty_rows: torch.Tensor


def _random_rows(training: TrainingSet, digits: torch.Tensor) -> torch.Tensor:
    """For each digit a row of the conditioning that names it; for some of them, one that says nothing."""
    count = len(digits)
    named = training.rows_of_digit[digits, torch.randint(training.rows_of_digit.shape[1], (count,))]
    empty = training.empty_rows[torch.randint(len(training.empty_rows), (count,))]
    return torch.where(torch.rand(count) < _DROPPED_SHARE, empty, named)


def fit_unet(
    unet: UNet,
    training: TrainingSet,
    noising: NoiseScheduler,
    budget: Budget,
    report: Report,
) -> None:
    """Train the UNet to predict what `noising` calls for, noise or velocity; it ends as the average of its steps."""
    last_timestep = noising.config.num_train_timesteps

    def loss_of_step() -> torch.Tensor:
        index = torch.randint(len(training.latents), (budget.batch_size,))
        latents = training.latents[index]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(last_timestep, (len(latents),))
        conditioning = training.conditioning.rows(_random_rows(training, training.digits[index]))
        noisy = noising.add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, **conditioning.unet_arguments()).sample
        is_velocity = noising.config.prediction_type == "v_prediction"
        target = noising.get_velocity(latents, noise, timesteps) if is_velocity else noise
        return F.mse_loss(predicted, target)

    average = EMAModel(unet.parameters(), decay=_EMA_DECAY, use_ema_warmup=True, power=0.75)
    unet.train()
    for _ in _minimise(unet, budget, loss_of_step, report):
        average.step(unet.parameters())
    average.copy_to(unet.parameters())
    unet.eval()


def rows_by_digit(prompts: Sequence[tuple[str, int]]) -> torch.Tensor:
    """Where in `prompts` each digit's are: int64 (10, prompts a digit). Every digit must have as many."""
    return torch.tensor([[row for row, (_, d) in enumerate(prompts) if d == digit] for digit in range(DIGITS)])
