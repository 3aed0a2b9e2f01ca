"""Loads a diffusers pipeline, sets its scheduler, and describes it to the acceleration methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from boundd.worker.architectures import ARCHITECTURES, build_pipeline
from boundd.worker.attention import check_attention, set_attention
from boundd.worker.compatibility import check_compatibility
from boundd.worker.completeness import build, load_or_refuse
from boundd.worker.devices import TorchDevice
from boundd.worker.digits import model_folder
from boundd.worker.errors import BadDataError, ModelUnavailableError
from boundd.worker.fetch import Fetcher, Wanted
from boundd.worker.first_call import observe_first_call
from boundd.worker.methods.base import ModelContext
from boundd.worker.model_folder import INDEX, ModelFolder, not_a_model_folder, read_model_folder, with_weights
from boundd.worker.sampling import Batch, Sampler
from boundd.worker.schedulers import OwnScheduler, build_scheduler, dry_run, read_own_scheduler
from boundd.worker.scorers import scorer_is_here
from boundd.worker.settings import BUILTIN, RANDOM, RunSettings

Pipeline: TypeAlias = Any
"""A diffusers text-to-image pipeline; diffusers is not typed."""


def load_pipeline(settings: RunSettings, device: TorchDevice, folder: ModelFolder | None = None) -> Pipeline:
    """The pipeline on its device, in its dtype, with the scheduler asked for.

    Args:
        settings: what to load.
        device: where to.
        folder: the model's folder, if `find_model` has been called before.

    Raises:
        ModelUnavailableError: when it can't be had.
        BadDataError: when the scheduler does not fit the model, or the device can't compute attention as asked.
    """
    import torch

    check_attention(settings.attention, is_cuda=device.is_cuda)
    check_schedule(settings)
    dtype = device.dtype_for(settings)
    if settings.weights == RANDOM:
        pipe = build_pipeline(ARCHITECTURES[settings.source], device.name, dtype, settings.seed)
    else:
        pipe = _from_pretrained(settings, folder or find_model(settings), getattr(torch, dtype))
    if not hasattr(pipe, "unet"):
        raise BadDataError(
            f"{settings.model}: {type(pipe).__name__} has no UNet, and the methods here accelerate UNets"
        )
    if hasattr(pipe, "safety_checker"):
        # It is not part of the model, costs time outside what is measured, and blackens images.
        pipe.safety_checker = None
    check_schedule(settings)  # again: its files may have come only now
    scheduler = build_scheduler(pipe.scheduler.config, settings.scheduler_class, type(pipe.scheduler).__name__)
    dry_run(scheduler, settings.steps)
    pipe.scheduler = scheduler
    pipe.to(device.name)
    set_attention(pipe, settings.attention)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    return pipe


def check_schedule(settings: RunSettings) -> None:
    """Refuse a scheduler that can't sample the model, before the model is loaded.

    Does nothing where no file on this machine describes the model's own scheduler.

    Raises:
        BadDataError: names both schedulers and the mismatch.
    """
    if (own := _own_scheduler(settings)) is None:
        return
    for own_class in own.classes:
        dry_run(build_scheduler(own.config, settings.scheduler_class, own_class), settings.steps)


def _own_scheduler(settings: RunSettings) -> OwnScheduler | None:
    """The scheduler that the model ships with; None where no file on this machine says so."""
    if settings.weights == RANDOM:
        architecture = ARCHITECTURES[settings.source]
        return OwnScheduler((architecture.scheduler_class,), architecture.scheduler)
    if settings.source == BUILTIN:
        return read_own_scheduler(model_folder(settings.model))
    if _is_path(settings.source):
        return read_own_scheduler(Path(settings.source))
    from huggingface_hub import try_to_load_from_cache

    try:
        index = try_to_load_from_cache(settings.source, "model_index.json")
    except ValueError:  # no id that a hub could have; loading says so
        return None
    return read_own_scheduler(Path(index).parent) if isinstance(index, str) else None


def describe(pipe: Pipeline, settings: RunSettings) -> ModelContext:
    """What methods need to know: the UNet's structure (not the model's name), and the pipeline's first UNet call."""
    first = observe_first_call(pipe, Sampler(settings, str(pipe.device)), Batch(("an image",), (settings.seed,)))
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
        timesteps=first.timesteps,
        is_guided=first.is_guided,
    )


def _from_pretrained(settings: RunSettings, folder: ModelFolder, dtype: Any) -> Pipeline:
    import diffusers

    unets = {name: architecture.unet for name, architecture in ARCHITECTURES.items()}
    parts = check_compatibility(folder, settings.model, unets)
    parts |= {part.name: build(part, dtype) for part in with_weights(folder)}
    # Safety checkers are not part of the model, cost time outside what is measured, and blacken images.
    extra = {"safety_checker": None, "requires_safety_checker": False} if "text_encoder_2" not in parts else {}
    loader = getattr(diffusers, folder.pipeline_class)
    return load_or_refuse(
        lambda: loader.from_pretrained(str(folder.path), **parts, **extra, torch_dtype=dtype, local_files_only=True),
        f"the model in {folder.path} could not be put together",
    )


def find_model(settings: RunSettings) -> ModelFolder:
    """The folder of the pretrained weights, checked. The hub is not asked: call `fetch_missing` first.

    Raises:
        ModelUnavailableError: when it can't be had, or is damaged.
        BadDataError: when it is a kind of model that boundd does not measure, or not the one asked for.
    """
    source = str(model_folder(settings.model)) if settings.source == BUILTIN else settings.source
    if _is_path(source):
        path = Path(source).expanduser()
        if instead := not_a_model_folder(path):
            raise ModelUnavailableError(_not_found(settings, instead))
        # Without its index, an absolute or dotted path would be asked of the hub as if it were an id.
        if not (path / INDEX).exists() and not (path / INDEX).is_symlink():
            raise ModelUnavailableError(_not_found(settings, f"the folder {source} holds no {INDEX}"))
        return read_model_folder(path, settings.model, settings.pipeline_class)
    return read_model_folder(_cached(settings), settings.model, settings.pipeline_class)


def fetch_missing(settings: RunSettings, fetcher: Fetcher) -> list[str]:
    """Fetch the model and the scorer from the hub if they aren't on this machine; returns warnings (renamed models).

    Raises:
        WorkerError: one of them does not exist, may not be read, or can't be fetched now.
    """
    wanted = []
    if settings.weights != RANDOM and settings.source != BUILTIN and not _is_path(settings.source):
        wanted.append((Wanted("model", settings.source, settings.pipeline_class), lambda: _is_here(settings)))
    scorer = settings.scorer
    if scorer and scorer != BUILTIN and not _is_path(scorer):
        wanted.append((Wanted("scorer", scorer), lambda: scorer_is_here(scorer)))
    renamed = []
    for each, is_here in wanted:
        try:
            renamed.append((each.source, fetcher.ensure(each, is_here)))
        except ModelUnavailableError as error:
            if each.what == "scorer":
                raise
            raise ModelUnavailableError(_not_found(settings, str(error))) from error
    return [f'the hub has renamed {old} to {new}: set source = "{new}"' for old, new in renamed if new]


def _is_here(settings: RunSettings) -> bool:
    try:
        find_model(settings)
    except ModelUnavailableError:
        return False
    except BadDataError:
        return True  # it is here, but of another kind: loading it reports that
    return True


def _cached(settings: RunSettings) -> Path:
    """The folder of the hub's cache that holds the model."""
    import diffusers

    loader = getattr(diffusers, settings.pipeline_class or "DiffusionPipeline")
    left_out = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    try:
        return Path(loader.download(settings.source, use_safetensors=True, local_files_only=True, **left_out))
    except (OSError, ValueError, ImportError, TypeError, AttributeError, KeyError) as error:
        raise ModelUnavailableError(_not_found(settings, f"{type(error).__name__}: {error}")) from error


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or Path(source).is_dir() or source.count("/") > 1


def _not_found(settings: RunSettings, reason: str) -> str:
    from huggingface_hub import constants

    return (
        f"the model {settings.model} could not be loaded from {settings.source!r}. Looked in: the folder of that name,"
        f" the Hugging Face cache at {constants.HF_HUB_CACHE}, the hub. To give it: set source in the config's"
        f' [models."{settings.model}"] (or --source) to a folder that save_pretrained wrote, or to a hub id this'
        f" machine can reach; or fetch it beforehand with `hf download`. {reason}"
    )
