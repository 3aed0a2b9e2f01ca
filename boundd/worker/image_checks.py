"""Checks that a measured bound means something.

Finite numbers are not enough. A cell is refused, or a warning is written, where images are blank, where an image
depends on the others of its batch, where the scorer can't judge a prompt, or where images score no better than noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from boundd.worker.errors import BadDataError, shortage_of
from boundd.worker.methods.base import Call, Parameters
from boundd.worker.points import Baseline, Bench
from boundd.worker.quality import blank_images, score_all
from boundd.worker.sampling import Batch, to_host
from boundd.worker.scorers import Scorer
from boundd.worker.settings import RANDOM, RunSettings

if TYPE_CHECKING:
    import torch

MAX_BLANK_SHARE = 0.5
"""Largest share of baseline images of a single colour. With more of them the score loss is not meaningful."""
SAME_LEVEL = 1 / 255
"""Mean difference of two images, in [0, 1], below which they count as the same: one level of 8-bit colour."""
MAX_DEPENDENCE = 0.02
"""Largest mean difference, over pixels in [0, 1], between an image made alone and the same image made in its batch, in
float32. Another order of summation gives far less (0.0003 for the digits models in bfloat16); mixing two images gives
more."""
MAX_DEPENDENCE_IN_HALF = 0.05
"""The same in half precision, where rounding errors add up over 50 steps of a large model."""
NOTED_DEPENDENCE = 0.002
"""From this difference on, the result carries a warning."""
NOISE_IMAGES = 8
"""How many images of noise are scored, to compare the baseline with."""
MAX_GAIN = 1.0
"""Largest share of its score that a model may gain by acceleration. If acceleration doubles the score, the baseline
images are no reference."""
_QUOTED_CHARACTERS = 60


def check_prompts(pipe: Any, scorer: Scorer | None, batches: Sequence[Batch]) -> list[str]:
    """Warnings about the prompts, known before an image is made.

    Raises:
        BadDataError: when the scorer can't judge one of them.
    """
    prompts = list(dict.fromkeys(prompt for batch in batches for prompt in batch.prompts))
    if scorer is not None:
        for prompt in prompts:
            if reason := scorer.why_unscorable(prompt):
                raise BadDataError(
                    f"the scorer can't judge the prompt {_quoted(prompt)}: {reason}; give other --prompts, another"
                    " --scorer, or --scorer '' to measure without a score"
                )
    readers = [(name, getattr(pipe, name, None)) for name in ("tokenizer", "tokenizer_2")]
    limits = [(name, tokenizer, _max_tokens(pipe, name, tokenizer)) for name, tokenizer in readers if tokenizer]
    remarks = [
        _cut(f"the model's {name}", cut, len(prompts), most)
        for name, tokenizer, most in limits
        if (cut := [prompt for prompt in prompts if len(tokenizer(prompt, verbose=False).input_ids) > most])
    ]
    most = None if scorer is None else scorer.max_tokens
    if scorer is not None and most is not None:
        cut = [prompt for prompt in prompts if scorer.count_tokens(prompt) > most]
        remarks += [_cut("the scorer", cut, len(prompts), most)] if cut else []
    return remarks


def check_images(settings: RunSettings, bench: Bench, baseline: Baseline) -> list[str]:
    """Warnings about the baseline images.

    Raises:
        BadDataError: when too many show a single colour, or all are the same.
    """
    made = [baseline.made(index).images for index in range(len(bench.batches))]
    blank = [colour for images in made for colour in blank_images(images)]
    remarks = []
    if colours := Counter(colour for colour in blank if colour is not None):
        few = ", ".join(f"{count} {colour}" for colour, count in colours.most_common())
        remarks.append(f"of {len(blank)} unaccelerated images some show nothing but one colour: {few}")
        if sum(colours.values()) > MAX_BLANK_SHARE * len(blank) and settings.weights != RANDOM:
            raise BadDataError(
                f"{remarks[-1]}; a score loss would mean nothing. Are the VAE's weights complete,"
                " and has the dtype enough range for it (try --dtype float32 or bfloat16)?"
            )
    if len(blank) > 1 and _all_the_same(made):
        remarks.append(f"all {len(blank)} unaccelerated images are the same, though their seeds differ")
        if settings.weights != RANDOM:
            raise BadDataError(f"{remarks[-1]}: the model ignores its input, so nothing can be measured")
    return remarks


def check_dependence(bench: Bench, baseline: Baseline, parameters: Parameters) -> tuple[float | None, list[str]]:
    """How far an image changes when it is made alone instead of in its batch, and warnings.

    Tried without acceleration and at one accelerated point. The value is the larger mean difference over pixels in
    [0, 1]; None where batches hold one image.

    Raises:
        BadDataError: when the difference is over the limit.
    """
    batch = bench.batches[0]
    if len(batch.seeds) < 2:
        return None, []
    alone = Batch(batch.prompts[-1:], batch.seeds[-1:])

    def make(call: Call, one: Batch) -> torch.Tensor:
        bench.images_made += len(one.seeds)
        return to_host(bench.sampler.generate(call, one), "an image that was made alone")[-1]

    def accelerated() -> float:
        with bench.method.applied(bench.pipe, parameters, bench.pipe) as call:
            return _distance(make(call, batch), make(call, alone))

    limit = MAX_DEPENDENCE if bench.pipe.unet.dtype.itemsize >= 4 else MAX_DEPENDENCE_IN_HALF
    found, remarks = [], []
    for what, measure in (
        ("without acceleration", lambda: _distance(baseline.made(0).images[-1], make(bench.pipe, alone))),
        (f"with {bench.method.name} at {dict(parameters)}", accelerated),
    ):
        try:
            with bench.lease.shared():
                found.append(bench.memory.during("independence", measure))
        except Exception as error:
            if shortage_of(error) is None:
                raise
            bench.device.free_unused()
            remarks.append(f"could not check whether images depend on their batch, {what}: out of memory")
            continue
        if found[-1] > limit:
            raise BadDataError(
                f"{what}, an image differs when it is made alone instead of in a batch of {len(batch.seeds)} (mean"
                f" difference {found[-1]:.3f} of 1): it depends on more than its prompt and seed, so its score can't be"
                " compared"
            )
        if found[-1] > NOTED_DEPENDENCE:
            remarks.append(
                f"{what}, an image changes by {found[-1]:.4f} of 1 on average when it is made alone, not in its batch"
            )
    return max(found, default=None), remarks


def check_losses(losses: Iterable[float | None]) -> None:
    """Refuse score losses that show that the baseline images are no reference.

    Raises:
        BadDataError: when accelerated images score more than twice as much as the baseline.
    """
    lowest = min((loss for loss in losses if loss is not None), default=0.0)
    if lowest < -MAX_GAIN:
        raise BadDataError(
            f"accelerated images score {1 - lowest:.1f} times as much as the unaccelerated ones, so the unaccelerated"
            " images are no reference. Are there enough steps, and do model, prompts and scorer belong together?"
        )


def check_scores(bench: Bench, baseline: Baseline) -> None:
    """Refuse a baseline that scores no more than noise does.

    Raises:
        BadDataError: names both mean scores.
    """
    import torch

    if bench.scorer is None:
        return
    generator = torch.Generator().manual_seed(0)
    of_noise: list[float] = []
    for index, batch in enumerate(bench.batches):
        images = baseline.made(index).images
        noise = torch.rand(images.shape, generator=generator)
        with bench.lease.shared():
            of_noise += score_all(bench.scorer, noise, batch.prompts)
        if len(of_noise) >= NOISE_IMAGES:
            break
    scores = baseline.all_scores[: len(of_noise)]
    mean, mean_of_noise = sum(scores) / len(scores), sum(of_noise) / len(of_noise)
    if mean <= mean_of_noise:
        raise BadDataError(
            f"the unaccelerated images score {mean:.1f} on average, and noise {mean_of_noise:.1f}: the scorer does not"
            " find the prompts in them, so a score loss would mean nothing. Do scorer, prompts and model belong"
            " together, and are there enough steps?"
        )


def _all_the_same(batches: Sequence[torch.Tensor]) -> bool:
    first = batches[0][0]
    return all(_distance(image, first) < SAME_LEVEL for images in batches for image in images)


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().mean())


def _max_tokens(pipe: Any, name: str, tokenizer: Any) -> int:
    """How many tokens the model reads: the limit of its text encoder, or of its tokenizer if that is less."""
    encoder = getattr(pipe, name.replace("tokenizer", "text_encoder"), None)
    places = getattr(getattr(encoder, "config", None), "max_position_embeddings", tokenizer.model_max_length)
    return min(int(places), int(tokenizer.model_max_length))


def _cut(reader: str, cut: Sequence[str], of: int, most: int) -> str:
    return (
        f"{reader} reads {most} tokens, and {len(cut)} of {of} prompts are longer, so their ends are ignored, such"
        f" as that of {_quoted(cut[0])}"
    )


def _quoted(prompt: str) -> str:
    return repr(prompt if len(prompt) <= _QUOTED_CHARACTERS else prompt[:_QUOTED_CHARACTERS] + "…")
