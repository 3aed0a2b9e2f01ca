"""Reads a model's folder and checks that its files are complete, before anything is loaded.

Only small files and the heads of large ones are read, so it takes milliseconds. Errors name the file and what to do.
The libraries themselves load what they can of a damaged folder, fill in the rest at random, or fail later without
naming the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from boundd.worker.errors import BadDataError, ModelUnavailableError

INDEX: Final = "model_index.json"
CONFIG: Final = "config.json"
SCHEDULER_CONFIG: Final = "scheduler_config.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
TOKENIZER_FILES: Final = (
    TOKENIZER_CONFIG,
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
DIFFUSERS_STEM: Final = "diffusion_pytorch_model"
TRANSFORMERS_STEM: Final = "model"
PREFERRED_VARIANTS: Final = ("fp16", "bf16", "fp32")
"""Variants that hold the same weights in another precision, by preference. Others, such as 'non_ema', differ."""
NAMES_SHOWN: Final = 4
_HEAD_BYTES: Final = 512

STABLE_DIFFUSION: Final = "StableDiffusionPipeline"
STABLE_DIFFUSION_XL: Final = "StableDiffusionXLPipeline"
SCHEDULER: Final = "scheduler"

_TOKENIZERS: Final = ("CLIPTokenizer", "CLIPTokenizerFast")
_AUTOENCODERS: Final = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny")
PARTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = MappingProxyType(
    {
        STABLE_DIFFUSION: {
            "unet": ("UNet2DConditionModel",),
            "vae": _AUTOENCODERS,
            "text_encoder": ("CLIPTextModel",),
            "tokenizer": _TOKENIZERS,
        },
        STABLE_DIFFUSION_XL: {
            "unet": ("UNet2DConditionModel",),
            "vae": _AUTOENCODERS,
            "text_encoder": ("CLIPTextModel",),
            "text_encoder_2": ("CLIPTextModelWithProjection",),
            "tokenizer": _TOKENIZERS,
            "tokenizer_2": _TOKENIZERS,
        },
    }
)
"""Supported pipeline classes -> the parts that they need beside a scheduler, and the classes allowed for each part.
Safety checkers are not part of the measurement and are not read."""

_SAME_WEIGHTS: Final[Mapping[str, str]] = {
    "StableDiffusionImg2ImgPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLImg2ImgPipeline": STABLE_DIFFUSION_XL,
}
"""Image-to-image pipelines -> the text-to-image pipeline with the same parts, as which they can be measured."""


@dataclass(frozen=True)
class Weights:
    """The weights of one part.

    Attributes:
        variant: such as 'fp16' in `model.fp16.safetensors`; None for `model.safetensors`.
        files: the safetensors files, and their index if there is one.
        shapes: of every tensor, by name.
        dtypes: safetensors' names of them, such as 'F16', by tensor.
    """

    variant: str | None
    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """One part of a pipeline. `config` is its configuration as written; `weights` is None if it has none."""

    name: str
    class_name: str
    folder: Path
    config: Mapping[str, Any]
    weights: Weights | None
    files: tuple[Path, ...]


@dataclass(frozen=True)
class ModelFolder:
    """A model in a folder with all its parts.

    Attributes:
        path: the folder.
        pipeline_class: the class that it is measured as.
        parts: by their names in the pipeline.
    """

    path: Path
    pipeline_class: str
    parts: Mapping[str, Part]

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read to build the pipeline."""
        return (self.path / INDEX, *(file for part in self.parts.values() for file in part.files))

    @property
    def variants(self) -> dict[str, str]:
        """The variant of each part that is loaded from a variant's files."""
        loaded = {name: part.weights.variant for name, part in self.parts.items() if part.weights}
        return {name: variant for name, variant in loaded.items() if variant}


def read_model_folder(path: Path, model: str, asked_class: str) -> ModelFolder:
    """Read a folder that `save_pretrained` wrote, or one in the hub's cache.

    Args:
        path: the folder, which holds a model_index.json.
        model: its name, for messages.
        asked_class: the pipeline class that the name stands for, or '' to go by the folder's own.

    Raises:
        ModelUnavailableError: when a file is missing or damaged; names it and says what to do.
        BadDataError: when it is a kind of model that boundd does not measure, or not the one asked for.
    """
    index = read_json(path / INDEX)
    pipeline_class = _pipeline_class(path, index.get("_class_name"), model, asked_class)
    parts = {name: _part(path, index, name, classes) for name, classes in PARTS[pipeline_class].items()}
    scheduler_class = _declared_class(path, index, SCHEDULER)
    config = path / SCHEDULER / SCHEDULER_CONFIG
    parts[SCHEDULER] = Part(SCHEDULER, scheduler_class, config.parent, read_json(config), None, (config,))
    return ModelFolder(path, pipeline_class, parts)


def not_a_model_folder(path: Path) -> str | None:
    """What `path` is instead of a model folder, and what to do; None if it is one, or if that can't be told."""
    if path.is_file():
        return f"{path} is a file; {_CONVERT}"
    if not path.is_dir() or (path / INDEX).exists() or (path / INDEX).is_symlink():
        return None
    if (path.parent / INDEX).is_file():
        return f"{path} is a part of the model in {path.parent}; give that folder"
    nested = sorted(each.parent for each in path.glob(f"*/{INDEX}"))
    if len(nested) == 1:
        return f"the model is in {nested[0]}; give that folder"
    single = sorted([*path.glob("*.safetensors"), *path.glob("*.ckpt")])
    if single:
        return f"{single[0]} is a model in a single file; {_CONVERT}"
    return None


_CONVERT: Final = (
    "a single file needs to be made a folder first, with diffusers: "
    f"{STABLE_DIFFUSION}.from_single_file(FILE).save_pretrained(FOLDER) ({STABLE_DIFFUSION_XL} for an SDXL)"
)


def _pipeline_class(path: Path, own: object, model: str, asked: str) -> str:
    """The pipeline class as which the model is measured."""
    where = path / INDEX
    if not isinstance(own, str):
        raise BadDataError(
            f"{where} names no pipeline class of diffusers ({_short(own)}); give a folder whose _class_name is one of"
            f" {', '.join(PARTS)}"
        )
    if own in PARTS:
        if asked in ("", own):
            return own
        raise BadDataError(
            f"{where} says {own}, and {model} is a {asked}; name the model after what it is, or give the folder of a"
            f" {asked} as its source"
        )
    twin = _SAME_WEIGHTS.get(own)
    if twin is not None and asked == twin:
        return twin
    cure = f"take --pipe {twin}" if twin else f"give the folder of a {' or a '.join(PARTS)}"
    kind = "no text-to-image model of Stable Diffusion's kind, with a UNet; the methods here accelerate UNets"
    raise BadDataError(f"{where} says {own}, which is {'for another task' if twin else kind}; {cure}")


def _declared_class(path: Path, index: Mapping[str, Any], name: str) -> str:
    match index.get(name):
        case [str(), str() as class_name]:
            return class_name
        case None | [None, *_]:
            raise ModelUnavailableError(
                f"{path / INDEX} says that the model has no {name}, without which it can't be measured; fetch the whole"
                " model, or save the whole pipeline again"
            )
        case other:
            raise ModelUnavailableError(
                f"{path / INDEX}: {name} is {_short(other)}, not a library and a class; {_AGAIN}"
            )


def _part(path: Path, index: Mapping[str, Any], name: str, classes: Sequence[str]) -> Part:
    class_name, folder = _declared_class(path, index, name), path / name
    if class_name not in classes:
        raise BadDataError(
            f"{path / INDEX} says that the {name} is a {class_name}, which is not measured; give a model whose"
            f" {name} is a {' or a '.join(classes)}"
        )
    if not folder.is_dir():
        raise ModelUnavailableError(f"the folder {folder} is missing, which {path / INDEX} lists; {_AGAIN}")
    if name.startswith("tokenizer"):
        return read_tokenizer(folder, name, class_name)
    of_diffusers = name in ("unet", "vae")
    config = read_json(folder / CONFIG)
    weights = find_weights(folder, DIFFUSERS_STEM if of_diffusers else TRANSFORMERS_STEM, is_index_first=of_diffusers)
    return Part(name, class_name, folder, config, weights, (folder / CONFIG, *weights.files))


def read_tokenizer(folder: Path, name: str, class_name: str) -> Part:
    """A tokenizer's files.

    Raises:
        ModelUnavailableError: when one is missing or damaged.
    """
    files = tuple(folder / file for file in TOKENIZER_FILES if (folder / file).exists() or (folder / file).is_symlink())
    present = {file.name for file in files}
    if "tokenizer.json" not in present and not {"vocab.json", "merges.txt"} <= present:
        raise ModelUnavailableError(
            f"{folder} holds neither tokenizer.json nor vocab.json with merges.txt; {_AGAIN}: without them there is no"
            " tokenizer"
        )
    for file in files:
        if file.suffix == ".json":
            read_json(file)
        else:
            head_of(file)
    config = read_json(folder / TOKENIZER_CONFIG) if TOKENIZER_CONFIG in present else {}
    return Part(name, class_name, folder, config, None, files)


_AGAIN: Final = "fetch or save it again"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelUnavailableError: when it is missing, damaged, or holds something else.
    """
    head = head_of(path)
    if head.startswith(b"\xef\xbb\xbf"):
        raise ModelUnavailableError(
            f"{path} begins with a byte-order mark, which its reader refuses; save it as UTF-8 without one"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # undecodable text is a ValueError too
        raise ModelUnavailableError(f"{path} is no JSON ({error}); {_AGAIN}") from error
    if not isinstance(value, dict):
        raise ModelUnavailableError(f"{path} holds {_short(value)}, not an object; {_AGAIN}")
    return value


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        ModelUnavailableError: when it is missing, unreadable or empty, or is only a pointer file (Git LFS, git-annex)
            or a web page.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise ModelUnavailableError(f"{path} is a link to {path.readlink()}, which isn't there; {_AGAIN}")
        if path.exists() and not path.is_file():
            raise ModelUnavailableError(f"{path} is no file; {_AGAIN}")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise ModelUnavailableError(f"{path} is missing; {_AGAIN}") from None
    except PermissionError as error:
        raise ModelUnavailableError(f"{path} can't be read ({error.strerror}); give this user the right to") from None
    if not head:
        raise ModelUnavailableError(f"{path} is empty; {_AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise ModelUnavailableError(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its clone"
        )
    if head.startswith(b"/annex/objects/"):
        raise ModelUnavailableError(
            f"{path} is a git-annex pointer, not the file itself; run `git annex get` in its clone"
        )
    if head.lstrip()[:9].lower() in (b"<!doctype", b"<html>") or head.lstrip()[:5].lower() == b"<html":
        raise ModelUnavailableError(f"{path} is a web page, not the file itself; fetch it again, signed in if need be")
    if not head.strip(b"\0"):
        raise ModelUnavailableError(f"{path} begins with nothing but zeros, as an unfinished download does; {_AGAIN}")
    return head


def find_weights(folder: Path, stem: str, *, is_index_first: bool = False) -> Weights:
    """The weights in a part's folder: a single file, shards, or a variant if there is nothing else.

    Args:
        stem: the file's name without suffix: 'diffusion_pytorch_model' or 'model'.
        is_index_first: whether the library prefers shards to a single file (diffusers does, transformers doesn't).

    Raises:
        ModelUnavailableError: when there are none, or they are damaged.
    """
    found = _variants(folder, stem)
    if not found:
        raise ModelUnavailableError(_no_weights(folder, stem))
    preferred: list[str | None] = [None, *PREFERRED_VARIANTS]
    variant = next((each for each in preferred if each in found), None)
    if variant not in found:
        names = ", ".join(sorted(str(each) for each in found))
        if len(found) > 1:
            raise ModelUnavailableError(
                f"{folder} holds only the variants {names} of {stem}.safetensors, and which one is meant is not clear;"
                f" rename the one to take to {stem}.safetensors"
            )
        (variant,) = found
    whole, index = found[variant]
    if index is not None and (is_index_first or whole is None):
        return _sharded(index, variant)
    assert whole is not None, "a variant has one or the other"
    shapes, dtypes = read_header(whole)
    return Weights(variant, (whole,), shapes, dtypes)


def _variants(folder: Path, stem: str) -> dict[str | None, tuple[Path | None, Path | None]]:
    """The single file and the shard index of each variant."""
    name = re.escape(stem)
    whole = re.compile(rf"{name}(?:\.(?P<variant>\w+))?\.safetensors")
    index = re.compile(rf"{name}\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
    found: dict[str | None, tuple[Path | None, Path | None]] = {}
    for path in sorted(folder.iterdir()):
        if match := whole.fullmatch(path.name):
            found[match["variant"]] = (path, found.get(match["variant"], (None, None))[1])
        elif match := index.fullmatch(path.name):
            found[match["variant"]] = (found.get(match["variant"], (None, None))[0], path)
    return found


def _no_weights(folder: Path, stem: str) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if shards := [name for name in names if re.fullmatch(rf"{re.escape(stem)}.*-of-\d+.*\.safetensors", name)]:
        return f"{folder} holds shards ({shards[0]}…) without {stem}.safetensors.index.json, their list; {_AGAIN}"
    if pickles := [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]:
        return (
            f"{folder / pickles[0]} is a pickle, which may run anything when it is loaded, and there is no"
            f" {stem}.safetensors; load the pipeline in diffusers once, and save_pretrained it"
        )
    if others := [name for name in names if name.endswith(".safetensors")]:
        return (
            f"{folder} holds no {stem}.safetensors, but {others[0]}; rename it if these are the weights, or fetch the"
            " model again"
        )
    if unfinished := [name for name in names if name.endswith((".incomplete", ".part", ".aria2", ".crdownload"))]:
        return f"{folder / unfinished[0]} is an unfinished download; {_AGAIN}"
    return f"{folder} holds no {stem}.safetensors; {_AGAIN}"


def _sharded(index: Path, variant: str | None) -> Weights:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ModelUnavailableError(f"{index} lists no tensors in a weight_map; {_AGAIN}")
    if outside := [name for name in listed.values() if Path(name).name != name]:
        raise ModelUnavailableError(f"{index} lists {_short(outside[0])}, which is no file beside it; {_AGAIN}")
    files = tuple(index.parent / name for name in sorted(set(listed.values())))
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for file in files:
        own_shapes, own_dtypes = read_header(file)
        wanted = [tensor for tensor, name in listed.items() if name == file.name]
        if missing := [tensor for tensor in wanted if tensor not in own_shapes]:
            raise ModelUnavailableError(
                f"{file} lacks {count(missing, 'tensor')} that {index.name} lists in it ({some(missing)}); {_AGAIN}"
            )
        shapes |= own_shapes
        dtypes |= own_dtypes
    return Weights(variant, (index, *files), shapes, dtypes)


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shape and the dtype of every tensor in a safetensors file; its length is checked.

    Raises:
        ModelUnavailableError: when it is damaged, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    head = head_of(path)
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            dtypes = {name: str(each.get_dtype()) for name, each in slices.items()}
    except SafetensorError as error:
        raise ModelUnavailableError(f"{path} {_what_instead(head, path, str(error))}; {_AGAIN}") from error
    if not shapes:
        raise ModelUnavailableError(f"{path} holds no tensors; {_AGAIN}")
    return shapes, dtypes


def _what_instead(head: bytes, path: Path, reason: str) -> str:
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "is a pickle under the name of a safetensors file"
    header_bytes = int.from_bytes(head[:8], "little")
    if len(head) < 8 or (head[8:9] == b"{" and path.stat().st_size < 8 + header_bytes) or "not fully covered" in reason:
        return f"is cut off, or has more than its header says: it ends after {path.stat().st_size:,} bytes"
    return f"is no safetensors file ({reason})"


def some(names: Sequence[str]) -> str:
    """The first few of some names, for a message."""
    shown = ", ".join(sorted(names)[:NAMES_SHOWN])
    return shown + (" …" if len(names) > NAMES_SHOWN else "")


def count(names: Sequence[str], noun: str) -> str:
    """'1 tensor', '3 tensors'."""
    return f"{len(names):,} {noun}{'' if len(names) == 1 else 's'}"


def one_line(text: str, most: int = 300) -> str:
    """A library's message on one line, cut to `most` characters."""
    words = " ".join(text.split())
    return words if len(words) <= most else words[:most] + "…"


def with_weights(folder: ModelFolder) -> Iterator[Part]:
    """The parts that have weights."""
    yield from (part for part in folder.parts.values() if part.weights is not None)


def _short(value: object) -> str:
    return one_line(repr(value), 60)
