"""Measures the built-in digits models: `python -m tools.digits.measure`.

The figures in docs/digits.md are its output.

Two classifiers tell which digit an image shows: the scorer, and an independent support vector machine on 8 x 8 pixels,
trained on the same images. Both are first tested on held-out digits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from boundd.worker.digits import DIGIT_WORDS, MODEL_NAMES, PROMPTS, digit_in, model_folder, scorer_folder
from boundd.worker.digits.architectures import LATENT_CHANNELS, LATENT_PX, SHAPES
from boundd.worker.digits.libraries import Pipeline, diffusers
from boundd.worker.digits.pipelines import encode_prompts
from boundd.worker.digits.scorer import DigitsScorer
from tools.digits.data import ink_of_images, load_split

SCHEDULERS: Final[dict[str, type[Any]]] = {
    "DDIM": diffusers.DDIMScheduler,
    "DPMSolverMultistep": diffusers.DPMSolverMultistepScheduler,
    "UniPCMultistep": diffusers.UniPCMultistepScheduler,
}
_BATCH_SIZE: Final = 20
_TIMED_BATCH_SIZE: Final = 8
_TIMED_CALLS: Final = 40

_CONTROL_IMAGES: Final = 60
_CONTROL_STEPS: Final = 10
_CONTROL_GUIDANCE: Final = 5.0
# Words that no training prompt holds are spelled in letters, a token each: far enough along, the digit is cut off.
_UNFAMILIAR: Final = {
    "unfamiliar words before the digit": ("zebra wearing number {}", "jersey {} (football)"),
    "unfamiliar words after the digit": ("{} my grandmother scribbled", "{} zebra wearing number"),
    "the digit cut off, past 16 tokens": ("my grandmother scribbled {}", "please give me some {}, thanks"),
}

Judge = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, 3, 32, 32) in [0, 1] -> the digit each shows, int64 (n,)."""


def load_pipeline(name: str, scheduler: str) -> Pipeline:
    """A built-in model with the scheduler of that name, from its folder alone."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model_folder(name), local_files_only=True)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: Pipeline, prompts: Sequence[str], steps: int, guidance_scale: float, first_seed: int = 0
) -> torch.Tensor:
    """One image a prompt, each from a seed of its own: float32 (n, 3, 32, 32) in [0, 1]."""
    batches = []
    for start in range(0, len(prompts), _BATCH_SIZE):
        batch = list(prompts[start : start + _BATCH_SIZE])
        seeds = range(first_seed + start, first_seed + start + len(batch))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = pipeline(
            batch,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
            output_type="pt",
        )
        batches.append(output.images)
    return torch.cat(batches)


def fit_second_judge() -> Judge:
    """A support vector machine on ink of 0 to 16 in 8 x 8 pixels, fitted to the training images."""
    from sklearn.svm import SVC

    data, _ = load_split()
    machine = SVC(gamma=0.001).fit(ink_of_images(data.images).flatten(1).numpy(), data.digits.numpy())

    def judge(images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.from_numpy(machine.predict(ink_of_images(images).flatten(1).numpy()))
        return found

    return judge


def share_recognised(judge: Judge, images: torch.Tensor, prompts: Sequence[str]) -> float:
    """The share, 0 to 1, of the images in which the judge sees the digit of their prompt."""
    wanted = torch.tensor([digit_in(prompt) for prompt in prompts])
    return (judge(images) == wanted).to(torch.float32).mean().item()


def unet_call_ms(name: str) -> float:
    """The median processor time of one UNet call at batch 8, which is batch 4 with guidance, on one thread; ms.

    Processor time, because a busy machine stretches the time on the wall by as much as it likes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = load_pipeline(name, "DDIM")
    arguments = encode_prompts(pipeline, list(PROMPTS[:_TIMED_BATCH_SIZE])).unet_arguments()
    latents = torch.randn(_TIMED_BATCH_SIZE, LATENT_CHANNELS, LATENT_PX, LATENT_PX)
    times_ms = []
    with torch.no_grad():
        for _ in range(_TIMED_CALLS):
            began_s = time.process_time()
            pipeline.unet(latents, 500, **arguments)
            times_ms.append(1000 * (time.process_time() - began_s))
    torch.set_num_threads(threads)
    return statistics.median(times_ms)


def folder_bytes(folder: Path) -> int:
    """The bytes of all the files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def contact_sheet(rows: Sequence[torch.Tensor], magnification: int = 2, gap_px: int = 2) -> Image.Image:
    """Rows of images, each (n, 3, 32, 32) in [0, 1], as one picture with grey lines between them."""
    framed = [torch.nn.functional.pad(row, (gap_px,) * 4, value=0.7) for row in rows]
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in framed], dim=1)
    pixels = (255 * sheet.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    picture = Image.fromarray(pixels.numpy())
    size = (picture.width * magnification, picture.height * magnification)
    return picture.resize(size, Image.Resampling.NEAREST)


def _print_sizes() -> None:
    """The table of parameters, bytes and the time of a UNet call."""
    print("| folder | UNet parameters | MB | UNet call of 8, CPU time |\n| --- | ---: | ---: | ---: |")
    for name in MODEL_NAMES:
        parameters = sum(p.numel() for p in load_pipeline(name, "DDIM").unet.parameters())
        size_mb = folder_bytes(model_folder(name)) / 1e6
        print(f"| {name} | {parameters:,} | {size_mb:.2f} | {unet_call_ms(name):.1f} ms |")
    print(f"| digits-scorer | | {folder_bytes(scorer_folder()) / 1e6:.2f} | |")
    total_mb = folder_bytes(scorer_folder().parent) / 1e6
    print(f"| together | | {total_mb:.2f} | |\n")


def _print_judges(scorer: DigitsScorer, second: Judge) -> None:
    """What both judges make of the held-out digits, and of noise."""
    _, held_out = load_split()
    prompts = [f"the digit {digit}" for digit in held_out.digits.tolist()]
    noise = torch.rand(held_out.images.shape, generator=torch.Generator().manual_seed(0))
    count = len(prompts)
    print("| images | scorer right | SVM right | mean score |\n| --- | ---: | ---: | ---: |")
    for title, images in (("held-out digits", held_out.images), ("noise", noise)):
        by_scorer = round(count * share_recognised(scorer.classify, images, prompts))
        by_second = round(count * share_recognised(second, images, prompts))
        mean = scorer.score(images, prompts).mean().item()
        print(f"| {title} | {by_scorer} of {count} | {by_second} of {count} | {mean:.1f} |")
    print()


def _print_legibility(scorer: DigitsScorer, second: Judge, options: argparse.Namespace) -> list[torch.Tensor]:
    """The share of generated images that each judge reads as prompted; returns ten images a model and scheduler."""
    prompts = PROMPTS[: options.images]
    rows = []
    print("| model | scheduler | steps | guidance | scorer | SVM | mean score |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in MODEL_NAMES:
        for scheduler in SCHEDULERS:
            pipeline = load_pipeline(name, scheduler)
            for steps in options.steps:
                for guidance_scale in options.guidance:
                    images = generate(pipeline, prompts, steps, guidance_scale)
                    by_scorer = share_recognised(scorer.classify, images, prompts)
                    by_second = share_recognised(second, images, prompts)
                    mean = scorer.score(images, prompts).mean().item()
                    print(
                        f"| {name} ({SHAPES[name].prediction_type}) | {scheduler} | {steps} | {guidance_scale:g} "
                        f"| {by_scorer:.1%} | {by_second:.1%} | {mean:.1f} |",
                        flush=True,
                    )
            in_order = [f"a handwritten digit {digit}" for digit in range(10)]
            rows.append(generate(pipeline, in_order, options.steps[-1], options.guidance[0], first_seed=1000))
    return rows


def _controls() -> list[tuple[str, list[str], list[str], int, float]]:
    """What should fail, and where it begins to: title, prompts drawn, prompts judged by, steps, guidance scale."""
    prompts = list(PROMPTS[:_CONTROL_IMAGES])
    usual = (_CONTROL_STEPS, _CONTROL_GUIDANCE)
    rows = [
        ("an empty prompt", [""] * len(prompts), prompts, *usual),
        ("judged by the next prompt", prompts, [*prompts[1:], prompts[0]], *usual),
        ("no guidance", prompts, prompts, _CONTROL_STEPS, 1.0),
        ("2 steps", prompts, prompts, 2, _CONTROL_GUIDANCE),
    ]
    for title, templates in _UNFAMILIAR.items():
        named = [template.format(word) for template in templates for word in DIGIT_WORDS for _ in range(3)]
        rows.append((title, named, named, *usual))
    return rows


def _print_controls(scorer: DigitsScorer, second: Judge) -> None:
    """The legibility table's controls, with DDIM: a judge that always nods would nod here too."""
    print("\n| model | control | scorer | SVM | mean score |\n| --- | --- | ---: | ---: | ---: |")
    for name in MODEL_NAMES:
        pipeline = load_pipeline(name, "DDIM")
        for title, drawn, judged, steps, guidance_scale in _controls():
            images = generate(pipeline, drawn, steps, guidance_scale)
            by_scorer = share_recognised(scorer.classify, images, judged)
            by_second = share_recognised(second, images, judged)
            mean = scorer.score(images, judged).mean().item()
            print(f"| {name} | {title} | {by_scorer:.1%} | {by_second:.1%} | {mean:.1f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.digits.measure", description=__doc__)
    parser.add_argument("--images", type=int, default=len(PROMPTS), help="images a row (default one a prompt)")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20], help="numbers of steps (default 10 20)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[5.0], help="guidance scales (default 5)")
    parser.add_argument("--contact-sheet", type=Path, help="also draw ten digits of each into this PNG file")
    options = parser.parse_args(arguments)
    scorer = DigitsScorer.from_pretrained(scorer_folder())
    second = fit_second_judge()
    _print_sizes()
    _print_judges(scorer, second)
    rows = _print_legibility(scorer, second, options)
    _print_controls(scorer, second)
    if options.contact_sheet is not None:
        contact_sheet(rows).save(options.contact_sheet, optimize=True)


if __name__ == "__main__":
    main()
