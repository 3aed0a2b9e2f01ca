"""Checks that a model's parts belong together, by their configurations and by what the tokenizer produces.

Mismatched parts fail in the middle of a run or, worse, don't fail: with the wrong tokenizer every prompt becomes the
tokens of another text.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from boundd.worker.completeness import load_or_refuse
from boundd.worker.errors import BadDataError, ModelUnavailableError
from boundd.worker.model_folder import CONFIG, STABLE_DIFFUSION_XL, TOKENIZER_CONFIG, ModelFolder, Part, count, some

Config: TypeAlias = Mapping[str, Any]
Tokenizer: TypeAlias = Any
"""A tokenizer of transformers, which is not typed."""

LATENT_CHANNELS_DEFAULT: Final = 4
TIME_IDS: Final = 6
"""SDXL's UNet is given the original size, the crop and the target size: two numbers each."""
LEGACY_EOS: Final = 2
"""The eos_token_id in CLIP configurations before 2023, which is wrong; transformers then uses the largest token."""
FEWEST_OF_VOCABULARY: Final = 0.9
"""A tokenizer must have at least this share of the text encoder's embedding rows (which may be padded)."""
MERGES_LACKING: Final = 0.1
"""Largest share of multi-character tokens without a merge rule."""
_PROBE: Final = "a photo of two brown dogs, 37 red apples & a café"


def check_compatibility(folder: ModelFolder, model: str, known: Mapping[str, Config]) -> dict[str, Tokenizer]:
    """Check that the parts belong together. Returns the tokenizers, which are loaded for it.

    Args:
        folder: the model.
        model: the name that was asked for.
        known: the UNet configuration of each known model name.

    Raises:
        ModelUnavailableError: when a configuration or a tokenizer can't be read, or does not belong to the model.
        BadDataError: when the model needs more input than a prompt, or is not the one that its name says.
    """
    unet, vae = with_defaults(folder.parts["unet"]), with_defaults(folder.parts["vae"])
    _check_task(folder, unet, vae)
    _check_name(folder, model, unet, known)
    tokenizers: dict[str, Tokenizer] = {}
    encoders: list[Config] = []
    for suffix in ("", "_2") if folder.pipeline_class == STABLE_DIFFUSION_XL else ("",):
        encoder, tokenizer = folder.parts[f"text_encoder{suffix}"], folder.parts[f"tokenizer{suffix}"]
        encoders.append(text_config(encoder))
        tokenizers[tokenizer.name] = load_tokenizer(tokenizer)
        check_tokenizer(tokenizers[tokenizer.name], tokenizer, encoders[-1], str(encoder.folder / CONFIG))
    _check_widths(folder, unet, encoders)
    return tokenizers


def with_defaults(part: Part) -> Config:
    """A part's configuration, filled up with the defaults of its diffusers class."""
    import diffusers

    signature = inspect.signature(getattr(diffusers, part.class_name).__init__)
    parameters = signature.parameters.items()
    defaults = {name: each.default for name, each in parameters if each.default is not inspect.Parameter.empty}
    return {**defaults, **part.config}


def text_config(part: Part) -> Config:
    """A CLIP text encoder's configuration, filled up with the defaults of transformers."""
    return _text_config(part.config, str(part.folder / CONFIG))


def _text_config(config: Config, where: str) -> Config:
    from transformers import CLIPTextConfig

    own = config["text_config"] if config.get("model_type") == "clip" and "text_config" in config else config
    whole: Config = load_or_refuse(lambda: CLIPTextConfig.from_dict(dict(own)).to_dict(), f"{where} can't be read")
    return whole


def _check_task(folder: ModelFolder, unet: Config, vae: Config) -> None:
    """Check that the UNet needs only noise and a prompt, and works on this VAE's latents."""
    where = folder.parts["unet"].folder / CONFIG
    latent = vae.get("latent_channels", LATENT_CHANNELS_DEFAULT)
    channels, made = unet.get("in_channels"), unet.get("out_channels")
    if (channels, latent) == (9, 4):
        raise BadDataError(f"{where}: 9 in_channels are an inpainting model's; give a text-to-image model")
    if channels != latent or made != latent:
        raise BadDataError(
            f"{where}: the UNet takes {channels} channels and makes {made}, and the VAE's latents have {latent}: a"
            " model for another task, or parts of two models; give a text-to-image model"
        )
    if (made := vae.get("out_channels")) != 3:
        raise BadDataError(
            f"{folder.parts['vae'].folder / CONFIG}: the VAE makes {made} channels, and an image has"
            " 3; give a text-to-image model"
        )
    if unet.get("class_embed_type") is not None or unet.get("num_class_embeds") is not None:
        raise BadDataError(
            f"{where}: the UNet asks for a class beside the prompt, as upscalers do; give a text-to-image model"
        )
    if "image" in str(unet.get("encoder_hid_dim_type")):
        raise BadDataError(f"{where}: the UNet asks for an image beside the prompt; give a text-to-image model")
    wanted = "text_time" if folder.pipeline_class == STABLE_DIFFUSION_XL else None
    if (found := unet.get("addition_embed_type")) != wanted:
        raise BadDataError(
            f"{where}: addition_embed_type is {found!r}, and a {folder.pipeline_class} needs {wanted!r}: the UNet is"
            " another kind of model's; correct _class_name in model_index.json, or fetch the whole model again"
        )


def _check_name(folder: ModelFolder, model: str, unet: Config, known: Mapping[str, Config]) -> None:
    """Check that a model asked for as SD1.5, say, does not have the architecture of another known model."""
    marks = ("block_out_channels", "cross_attention_dim")
    own = {name: _marks(config, marks) for name, config in known.items()}
    found = _marks(unet, marks)
    if model in own and found != own[model] and (others := [name for name in own if own[name] == found]):
        raise BadDataError(
            f"{folder.path} holds a {others[0]} by its UNet's configuration, and was asked for as {model}; name the"
            f" model {others[0]}, or give {model}'s folder"
        )


def _marks(config: Config, names: tuple[str, ...]) -> str:
    return json.dumps([config.get(name) for name in names], default=str)


def _check_widths(folder: ModelFolder, unet: Config, encoders: list[Config]) -> None:
    """Check that the text encoders' output is as wide as the UNet's input."""
    where = folder.parts["unet"].folder / CONFIG
    given = sum(int(encoder["hidden_size"]) for encoder in encoders)
    taken = unet.get("encoder_hid_dim") or unet.get("cross_attention_dim")
    if set(taken if isinstance(taken, list | tuple) else [taken]) != {given}:
        raise ModelUnavailableError(
            f"{where}: cross_attention_dim is {taken}, and the text encoder's states are {given} wide: they are of two"
            " models; fetch the whole model again"
        )
    if folder.pipeline_class == STABLE_DIFFUSION_XL:
        width, time = unet.get("projection_class_embeddings_input_dim"), unet.get("addition_time_embed_dim")
        needed = int(encoders[-1]["projection_dim"]) + TIME_IDS * (time if isinstance(time, int) else 0)
        if width != needed:
            raise ModelUnavailableError(
                f"{where}: projection_class_embeddings_input_dim is {width}, and the second text encoder with the time"
                f" ids gives {needed}: they are of two models (an SDXL refiner?); fetch the whole model again"
            )


def load_tokenizer(part: Part) -> Tokenizer:
    """The tokenizer of a part's folder.

    Raises:
        ModelUnavailableError: when it can't be read.
    """
    import transformers

    loader = getattr(transformers, part.class_name)
    return load_or_refuse(
        lambda: loader.from_pretrained(str(part.folder), local_files_only=True),
        f"the tokenizer in {part.folder} can't be read",
    )


def check_tokenizer(
    tokenizer: Tokenizer, part: Part, encoder: Config, encoder_where: str, *, needs_length: bool = True
) -> None:
    """Refuse a tokenizer that was not made for the encoder.

    Args:
        tokenizer: loaded from the part.
        part: its files, for messages.
        encoder: the text encoder's configuration, with defaults.
        encoder_where: its file, for messages.
        needs_length: whether the tokenizer's own model_max_length is used to cut prompts.

    Raises:
        ModelUnavailableError: says what does not fit, and how to correct it.
    """
    places, rows = int(encoder["max_position_embeddings"]), int(encoder["vocab_size"])
    where = part.folder / TOKENIZER_CONFIG
    length = tokenizer.model_max_length
    if needs_length and not 2 < length <= places:
        said = "says no model_max_length" if length > 1 << 30 else f"says a model_max_length of {length}"
        raise ModelUnavailableError(
            f"{where} {said}, and {encoder_where} has {places} places for tokens; write"
            f' "model_max_length": {places} into the former, or give the tokenizer that belongs to the model'
        )
    if not FEWEST_OF_VOCABULARY * rows <= len(tokenizer) <= rows:
        raise ModelUnavailableError(
            f"the tokenizer in {part.folder} has {len(tokenizer):,} tokens, and {encoder_where} a vocab_size of"
            f" {rows:,}: they are of two models; give the tokenizer that belongs to the model"
        )
    if (highest := max(tokenizer.get_vocab().values())) >= rows:
        raise ModelUnavailableError(
            f"the tokenizer in {part.folder} has a token of the number {highest:,}, and {encoder_where} a vocab_size of"
            f" {rows:,}; fetch it again, or give the tokenizer that belongs to the model"
        )
    end = encoder.get("eos_token_id")
    if end != LEGACY_EOS and tokenizer.eos_token_id != end:
        raise ModelUnavailableError(
            f"{encoder_where} says that text ends with token {end}, and the tokenizer in {part.folder} ends it with"
            f" {tokenizer.eos_token_id}, so the encoder would not find the end; give both from one model"
        )
    _check_tokens(tokenizer, part, rows, min(length, places))
    _check_merges(tokenizer, part)


def _check_tokens(tokenizer: Tokenizer, part: Part, rows: int, length: int) -> None:
    """Check the tokens of a test prompt: a start token, tokens that the encoder knows, an end token."""
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    tokens = load_or_refuse(
        lambda: list(tokenizer(_PROBE, **options).input_ids), f"the tokenizer in {part.folder} can't read a prompt"
    )
    is_framed = tokens[0] == tokenizer.bos_token_id and tokenizer.eos_token_id in tokens[1:]
    if not is_framed or len(tokens) != length or not all(0 <= each < rows for each in tokens):
        raise ModelUnavailableError(
            f"the tokenizer in {part.folder} makes of a prompt {tokens[:8]}…, which is not CLIP's form (a start, tokens"
            f" below {rows:,}, an end, padded to {length}); fetch or save it again"
        )
    if len(set(tokenizer(_PROBE, add_special_tokens=False).input_ids)) < 2:
        raise ModelUnavailableError(
            f"the tokenizer in {part.folder} makes one and the same token of every letter of a prompt: it does not know"
            " them; fetch or save it again"
        )


def _check_merges(tokenizer: Tokenizer, part: Part) -> None:
    """Check that multi-character tokens have merge rules. Without them a prompt is read letter by letter."""
    merges, vocabulary = _byte_pairs(tokenizer)
    made = {first + second for first, second in merges}
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    compound = [token for token in vocabulary if token not in special and len(token.removesuffix("</w>")) > 1]
    lacking = [token for token in compound if token not in made]
    if len(lacking) > MERGES_LACKING * len(compound):
        raise ModelUnavailableError(
            f"the tokenizer in {part.folder} has no merges for {count(lacking, 'token')} of its {len(compound):,}"
            f" compound ones ({some(lacking)}): merges.txt or tokenizer.json is cut off; fetch it again"
        )


def _byte_pairs(tokenizer: Tokenizer) -> tuple[list[tuple[str, str]], list[str]]:
    """The merge rules and the vocabulary, of a fast (Rust) or slow (Python) tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return list(tokenizer.bpe_ranks), list(tokenizer.encoder)
    model = json.loads(backend.to_str())["model"]
    pairs = [each.split(" ", 1) if isinstance(each, str) else each for each in model.get("merges", [])]
    return [(first, second) for first, second in pairs], list(model.get("vocab", {}))
