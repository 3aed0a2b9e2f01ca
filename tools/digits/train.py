"""Trains the built-in digits models again, from nothing: `python -m tools.digits.train --out DIR`.

In this order: the scorer, the autoencoder that the three models share, then for each model its text encoders and its
UNet. Every network starts from a seed of its own, so that `--only` gives the same weights as a whole run.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from boundd.worker.digits import MODEL_NAMES, SCORER_NAME
from boundd.worker.digits.architectures import NOISE_SCHEDULE, SHAPES, build_unet, build_vae
from boundd.worker.digits.libraries import Autoencoder, Pipeline, diffusers
from boundd.worker.digits.pipelines import Conditioning, build_pipeline, encode_prompts
from boundd.worker.digits.scorer import DigitsScorer
from tools.digits.data import LabelledImages, load_split
from tools.digits.fitting import (
    Budget,
    Report,
    TrainingSet,
    encode_images,
    fit_scorer,
    fit_text_encoder,
    fit_unet,
    fit_vae,
    rows_by_digit,
    training_prompts,
)

_SENTENCES_A_DIGIT: Final = 60


@dataclass(frozen=True)
class Plan:
    """How long each kind of network is trained, and on how many threads.

    Sums are rounded differently with another number of threads; with the same one, a seed gives the same bits.
    """

    threads: int
    scorer: Budget
    vae: Budget
    text_encoder: Budget
    unet: Budget


FULL_PLAN: Final = Plan(
    threads=2,
    scorer=Budget(steps=800, batch_size=64, peak_learning_rate=2e-3),
    vae=Budget(steps=2000, batch_size=32, peak_learning_rate=4e-3),
    text_encoder=Budget(steps=250, batch_size=64, peak_learning_rate=1e-3),
    unet=Budget(steps=2000, batch_size=64, peak_learning_rate=2e-3),
)
_HANDFUL: Final = Budget(steps=3, batch_size=8, peak_learning_rate=1e-3)
QUICK_PLAN: Final = Plan(threads=1, scorer=_HANDFUL, vae=_HANDFUL, text_encoder=_HANDFUL, unet=_HANDFUL)
"""The whole way with a handful of steps: what comes out loads and runs, and draws nothing."""


def _seed(seed: int, part: str) -> None:
    """Start a part of the training from a seed of its own, whatever was trained before it."""
    torch.manual_seed(zlib.crc32(f"{seed}/{part}".encode()))


def _reporter(part: str) -> Report:
    """Prints progress, with the seconds since the part began."""
    began_s = time.monotonic()
    return lambda line: print(f"{part}: {line}, {time.monotonic() - began_s:.0f} s", flush=True)


def train_scorer(data: LabelledImages, plan: Plan, seed: int) -> DigitsScorer:
    """A scorer trained on `data`."""
    _seed(seed, "scorer")
    scorer = DigitsScorer()
    fit_scorer(scorer, data, plan.scorer, _reporter(SCORER_NAME))
    return scorer


def train_vae(data: LabelledImages, plan: Plan, seed: int) -> Autoencoder:
    """The autoencoder of all three models, trained on `data`."""
    _seed(seed, "vae")
    vae = build_vae()
    fit_vae(vae, data, plan.vae, _reporter("autoencoder"))
    return vae


def _with_empty_rows(prompts: Conditioning, empty: Conditioning) -> tuple[Conditioning, torch.Tensor]:
    """The prompts' conditioning with "no prompt" after it, and its rows.

    "No prompt" is said by the empty string, and to an SDXL by zeros too: its pipeline puts them in for a negative
    prompt that isn't given.
    """
    hidden = [prompts.hidden, empty.hidden]
    if prompts.pooled is None or empty.pooled is None:
        return Conditioning(torch.cat(hidden), None), torch.tensor([len(prompts.hidden)])
    rows = torch.tensor([len(prompts.hidden), len(prompts.hidden) + 1])
    pooled = torch.cat([prompts.pooled, empty.pooled, torch.zeros_like(empty.pooled)])
    return Conditioning(torch.cat([*hidden, torch.zeros_like(empty.hidden)]), pooled), rows


def train_model(name: str, vae: Autoencoder, data: LabelledImages, plan: Plan, seed: int, folder: Path) -> Pipeline:
    """One of the three pipelines, trained on `data` and saved into `folder`."""
    shape = SHAPES[name]
    _seed(seed, name)
    pipeline = build_pipeline(shape, vae, build_unet(shape), folder)
    pipeline.set_progress_bar_config(disable=True)
    for part in ("", "_2")[: len(shape.text_encoders)]:
        encoder = getattr(pipeline, f"text_encoder{part}")
        tokenizer = getattr(pipeline, f"tokenizer{part}")
        fit_text_encoder(encoder, tokenizer, plan.text_encoder, seed, _reporter(f"{name} text encoder{part}"))
    prompts = training_prompts(_SENTENCES_A_DIGIT, seed + 1)
    conditioning, empty_rows = _with_empty_rows(
        encode_prompts(pipeline, [prompt for prompt, _ in prompts]), encode_prompts(pipeline, [""])
    )
    training = TrainingSet(
        latents=encode_images(vae, data.images),
        digits=data.digits,
        conditioning=conditioning,
        rows_of_digit=rows_by_digit(prompts),
        empty_rows=empty_rows,
    )
    noising = diffusers.DDPMScheduler(
        **{key: NOISE_SCHEDULE[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")},
        prediction_type=shape.prediction_type,
    )
    fit_unet(pipeline.unet, training, noising, plan.unet, _reporter(name))
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline


def train(out: Path, names: Sequence[str], plan: Plan, seed: int) -> None:
    """Train the networks named, and write each into its folder under `out`."""
    torch.set_num_threads(plan.threads)
    data, held_out = load_split()
    if SCORER_NAME in names:
        scorer = train_scorer(data, plan, seed)
        scorer.save_pretrained(out / SCORER_NAME)
        correct = (scorer.classify(held_out.images) == held_out.digits).to(torch.float32).mean().item()
        print(f"{SCORER_NAME}: {correct:.1%} of the {len(held_out)} held-out digits", flush=True)
    models = [name for name in MODEL_NAMES if name in names]
    if not models:
        return
    vae = train_vae(data, plan, seed)
    for name in models:
        train_model(name, vae, data, plan, seed, out / name)
        print(f"{name}: saved to {out / name}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    everything = (SCORER_NAME, *MODEL_NAMES)
    parser = argparse.ArgumentParser(prog="python -m tools.digits.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to put the models' folders into")
    parser.add_argument("--only", nargs="+", choices=everything, default=everything, help="train these alone")
    parser.add_argument("--seed", type=int, default=0, help="where every network's randomness starts (default 0)")
    parser.add_argument("--quick", action="store_true", help="a handful of steps each, to see that it runs")
    options = parser.parse_args(arguments)
    train(options.out, options.only, QUICK_PLAN if options.quick else FULL_PLAN, options.seed)


if __name__ == "__main__":
    main()
