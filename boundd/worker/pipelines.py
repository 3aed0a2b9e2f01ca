"""Loading a diffusers pipeline, giving it a scheduler, and describing it to the methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from boundd.worker.architectures import ARCHITECTURES, build_pipeline
from boundd.worker.attention import check_attention, set_attention
from boundd.worker.devices import Device
from boundd.worker.digits import model_folder
from boundd.worker.errors import BadDataError, ModelUnavailableError
from boundd.worker.methods.base import ModelContext
from boundd.worker.settings import BUILTIN, RANDOM, Settings

Pipeline: TypeAlias = Any
"""A diffusers text-to-image pipeline; diffusers is not typed."""


def load_pipeline(settings: Settings, device: Device) -> Pipeline:
    """The pipeline on its device, in its dtype, with the scheduler asked for.

    Raises:
        ModelUnavailableError: when it can't be had.
        BadDataError: when the model does not take the scheduler, or the device not this kind of attention.
    """
    import torch

    check_attention(settings.attention, is_cuda=device.is_cuda)
    dtype = device.dtype_for(settings)
    if settings.weights == RANDOM:
        pipe = build_pipeline(ARCHITECTURES[settings.source], device.name, dtype, settings.seed)
    else:
        pipe = _from_pretrained(settings, getattr(torch, dtype))
    if not hasattr(pipe, "unet"):
        raise BadDataError(
            f"{settings.model}: {type(pipe).__name__} has no UNet, and the methods here accelerate UNets"
        )
    if hasattr(pipe, "safety_checker"):
        # It is not part of the model, costs time outside what is measured, and blackens images.
        pipe.safety_checker = None
    pipe.scheduler = build_scheduler(pipe.scheduler.config, settings.scheduler_class)
    pipe.to(device.name)
    set_attention(pipe, settings.attention)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    return pipe


def build_scheduler(config: Any, class_name: str) -> Any:
    """A scheduler of the class, with the noise schedule and prediction type the model was trained with.

    Raises:
        BadDataError: when the class can't work with that config.
    """
    import diffusers

    scheduler_class = getattr(diffusers, class_name)
    trained_as = config.get("prediction_type", "epsilon")
    own = {"algorithm_type": "dpmsolver++"} if class_name.startswith("DPMSolver") else {}
    try:
        scheduler = scheduler_class.from_config(config, **own)
    except (ValueError, NotImplementedError, ImportError) as error:
        raise BadDataError(f"{class_name} can't be made from the model's scheduler config: {error}") from error
    if scheduler.config.get("prediction_type", "epsilon") != trained_as:
        raise BadDataError(
            f"{class_name} does not keep the model's prediction type {trained_as!r}; its images would be noise"
        )
    return scheduler


def describe(pipe: Pipeline, settings: Settings) -> ModelContext:
    """What the methods may depend on, read off the UNet's structure rather than the model's name."""
    blocks = list(pipe.unet.down_blocks)
    attending = tuple(2**level for level, block in enumerate(blocks) if getattr(block, "attentions", None))
    # DeepCache counts the skip connections of the down path: one a resnet, one a downsampler.
    branches = sum(len(block.resnets) + len(block.downsamplers or ()) for block in blocks)
    return ModelContext(
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        is_xl=hasattr(pipe, "text_encoder_2"),
        scheduler_order=pipe.scheduler.order,
        attention_downsamples=attending,
        cache_branches=branches,
        attention=settings.attention,
    )


def _from_pretrained(settings: Settings, dtype: Any) -> Pipeline:
    import diffusers

    source = str(model_folder(settings.model)) if settings.source == BUILTIN else settings.source
    # Without its index, an absolute or dotted path would be asked of the hub as if it were an id.
    if _is_path(source) and not (Path(source) / "model_index.json").is_file():
        raise ModelUnavailableError(_not_found(settings, f"the folder {source} holds no model_index.json"))
    loader = getattr(diffusers, settings.pipeline_class or "DiffusionPipeline")
    takes_checker = settings.pipeline_class == "StableDiffusionPipeline"
    extra = {"safety_checker": None, "requires_safety_checker": False} if takes_checker else {}
    try:
        return _cached_or_fetched(loader, source, torch_dtype=dtype, use_safetensors=True, **extra)
    except (OSError, ValueError, ImportError, TypeError, AttributeError, KeyError) as error:
        raise ModelUnavailableError(_not_found(settings, f"{type(error).__name__}: {error}")) from error


def _cached_or_fetched(loader: Any, source: str, **options: Any) -> Pipeline:
    """What is on this machine already, without a word to the hub; only else is it fetched."""
    try:
        return loader.from_pretrained(source, local_files_only=True, **options)
    except (OSError, ValueError):
        if Path(source).is_dir():
            raise
        return loader.from_pretrained(source, **options)


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or Path(source).is_dir() or source.count("/") > 1


def _not_found(settings: Settings, reason: str) -> str:
    from huggingface_hub import constants

    return (
        f"the model {settings.model} could not be loaded from {settings.source!r}. Looked in: the folder of that name,"
        f" the Hugging Face cache at {constants.HF_HUB_CACHE}, the hub. To give it: set source in the config's"
        f' [models."{settings.model}"] (or --source) to a folder that save_pretrained wrote, or to a hub id this'
        f" machine can reach; or fetch it beforehand with `hf download`. {reason}"
    )
