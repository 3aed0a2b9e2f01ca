"""Model folders that are odd in every way that folders are found to be, each with what must come of it.

A variant is a built-in model's folder with one thing changed. Whether it must load or be refused follows from the
change alone; the code under test is not asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from boundd.worker.digits import model_folder

MODELS = ("digits-sd15", "digits-sd21", "digits-sdxl")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"
ANNEX_POINTER = b"/annex/objects/SHA256E-s12345--4d7a214614ab.safetensors\n"
WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
OTHER_TASKS = (
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionLatentUpscalePipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLControlNetPipeline",
    "LatentConsistencyModelPipeline",
    "FluxPipeline",
    "StableDiffusion3Pipeline",
    "TextToVideoSDPipeline",
    "NoSuchPipeline",
)


@dataclass(frozen=True)
class Outcome:
    """What must come of a variant.

    Attributes:
        names: pieces of which a refusal must say at least one; none where the folder must load.
        parts: those to build in order to find out.
        changes_weights: whether what loads has other weights than the folder that it was made from.
        asked_class: the pipeline class that is asked for; '' for the folder's own.
    """

    names: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    asked_class: str = ""

    @property
    def is_refused(self) -> bool:
        """Whether it must not load."""
        return bool(self.names)


class Draft:
    """A copy of a model's folder, of links until a file is changed."""

    def __init__(self, model: str, path: Path) -> None:
        self.model = model
        self.origin = model_folder(model)
        self.path = path
        for file in self.origin.rglob("*"):
            if file.is_file():
                copy = path / file.relative_to(self.origin)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(file)

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Make a file anew."""
        (self.path / name).unlink(missing_ok=True)
        (self.path / name).write_bytes(content)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.path / name).unlink()

    def edit(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a JSON file."""
        value = json.loads(self.read(name))
        change(value)
        self.write(name, json.dumps(value).encode())

    def tensors(self, part: str) -> dict[str, torch.Tensor]:
        """A part's weights; a copy of the mapping, not of the tensors."""
        return dict(weights_of(self.model, part))

    def write_tensors(self, part: str, tensors: Mapping[str, torch.Tensor], name: str | None = None) -> None:
        """Write a part's weights, under its usual name or another one beside."""
        content = save({key: value.contiguous() for key, value in tensors.items()}, metadata={"format": "pt"})
        self.write(f"{part}/{name}" if name else weights_file(part), content)


Variant = Callable[[Draft], Outcome]


@cache
def weights_of(model: str, part: str) -> dict[str, torch.Tensor]:
    """A built-in model's weights."""
    return load_file(model_folder(model) / weights_file(part))


def stem(part: str) -> str:
    """What the names of its weights begin with."""
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def weights_file(part: str) -> str:
    """The path of its weights within the folder."""
    return f"{part}/{stem(part)}.safetensors"


def weighted(model: str) -> list[str]:
    """The parts that have weights."""
    return ["unet", "vae", "text_encoder", *(["text_encoder_2"] if model == "digits-sdxl" else [])]


def tokenizers(model: str) -> list[str]:
    """The tokenizers."""
    return ["tokenizer", *(["tokenizer_2"] if model == "digits-sdxl" else [])]


def needed_files(model: str) -> list[str]:
    """Every file without which the model can't be built."""
    return [
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"{part}/config.json" for part in weighted(model)),
        *(weights_file(part) for part in weighted(model)),
        *(f"{part}/{name}" for part in tokenizers(model) for name in ("tokenizer.json", "tokenizer_config.json")),
    ]


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, Variant]:
    """A file that is not what it was: cut, empty, a stand-in, gone."""
    model = draw(st.sampled_from(MODELS))
    name = draw(st.sampled_from(needed_files(model)))
    size = (model_folder(model) / name).stat().st_size
    ways = {
        "cut": lambda content: content[:draw_cut],
        "empty": lambda _: b"",
        "LFS pointer": lambda _: LFS_POINTER,
        "annex pointer": lambda _: ANNEX_POINTER,
        "web page": lambda _: WEB_PAGE,
        "zeros": lambda content: bytes(len(content)),
        "gone": None,
        "a folder": None,
        "a dead link": None,
        "longer": lambda content: content + b"\0{]",
    }
    # The last character of a JSON file is a newline, without which it is whole.
    draw_cut = draw(st.integers(1, size - 3))
    way = draw(st.sampled_from(sorted(ways)))

    def apply(draft: Draft) -> Outcome:
        path = draft.path / name
        change = ways[way]
        if change is not None:
            draft.write(name, change(draft.read(name)))
        else:
            draft.remove(name)
            if way == "a folder":
                path.mkdir()
            elif way == "a dead link":
                path.symlink_to("../../blobs/4d7a2146")
        # Without its file of settings a tokenizer has no length; without its own file it may be made of others.
        if way == "gone" and name.endswith("/tokenizer.json"):
            for other in ("vocab.json", "merges.txt"):
                draft.remove(f"{name.split('/')[0]}/{other}")
        return Outcome(names=(str(path), str(path.parent) if way == "gone" else str(path)))

    return f"{model}: {name} {way}", apply


@st.composite
def odd_json(draw: st.DrawFn) -> tuple[str, Variant]:
    """A JSON file that holds something else, or is written oddly."""
    model = draw(st.sampled_from(MODELS))
    name = draw(st.sampled_from([each for each in needed_files(model) if each.endswith(".json")]))
    ways: dict[str, tuple[bool, Callable[[bytes], bytes]]] = {
        "byte-order mark": (False, lambda content: b"\xef\xbb\xbf" + content),
        "UTF-16": (False, lambda content: content.decode().encode("utf-16")),
        "a list": (False, lambda _: b"[]"),
        "a number": (False, lambda _: b"12"),
        "null": (False, lambda _: b"null"),
        "endless brackets": (False, lambda _: b"[" * 100_000),
        "a lone byte": (False, lambda content: content.replace(b"{", b"{\xff", 1)),
        "other line ends": (True, lambda content: content.replace(b"\n", b"\r\n")),
        "no last line end": (True, lambda content: content.rstrip()),
        "one line": (True, lambda content: json.dumps(json.loads(content)).encode()),
    }
    way = draw(st.sampled_from(sorted(ways)))

    def apply(draft: Draft) -> Outcome:
        is_fine, change = ways[way]
        draft.write(name, change(draft.read(name)))
        return Outcome() if is_fine else Outcome(names=(str(draft.path / name),))

    return f"{model}: {name} {way}", apply


@st.composite
def odd_tensors(draw: st.DrawFn) -> tuple[str, Variant]:
    """Weights that lack some, have others, or are of another shape or type."""
    model = draw(st.sampled_from(MODELS))
    part = draw(st.sampled_from(weighted(model)))
    names = sorted(weights_of(model, part))
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    whole_dtype = draw(st.sampled_from([torch.int8, torch.uint8, torch.int32]))

    def lacking(tensors: dict[str, torch.Tensor]) -> None:
        for name in chosen:
            del tensors[name]

    def renamed(tensors: dict[str, torch.Tensor]) -> None:
        for name in chosen:
            tensors[f"model.{name}.base_layer"] = tensors.pop(name)

    def longer(tensors: dict[str, torch.Tensor]) -> None:
        for name in chosen:
            tensors[name] = torch.cat([tensors[name], tensors[name][:1]])

    def with_others(tensors: dict[str, torch.Tensor]) -> None:
        for name in chosen:
            tensors[name.rsplit(".", 1)[0] + ".processor.to_q_lora.down.weight"] = torch.zeros(4, 4)

    def whole_numbers(tensors: dict[str, torch.Tensor]) -> None:
        for name in chosen:
            tensors[name] = tensors[name].to(whole_dtype)

    def zeros(tensors: dict[str, torch.Tensor]) -> None:
        for name in names:
            tensors[name] = torch.zeros_like(tensors[name])

    def of_another_type(tensors: dict[str, torch.Tensor]) -> None:
        for name in names:
            tensors[name] = tensors[name].to(dtype)

    ways = (lacking, renamed, longer, with_others, whole_numbers, zeros, of_another_type)
    way = draw(st.sampled_from(ways))

    def apply(draft: Draft) -> Outcome:
        tensors = draft.tensors(part)
        way(tensors)
        draft.write_tensors(part, tensors)
        names = () if way is of_another_type else (str(draft.path / part),)
        return Outcome(names=names, parts=(part,))

    return f"{model}: {part} {way.__name__} {chosen}", apply


@st.composite
def variants(draw: st.DrawFn) -> tuple[str, Variant]:
    """Some parts only in a variant's files."""
    model = draw(st.sampled_from(MODELS))
    chosen = draw(st.lists(st.sampled_from(weighted(model)), min_size=1, unique=True))
    variant = draw(st.sampled_from(["fp16", "bf16", "fp32", "non_ema", "ema"]))
    is_beside = draw(st.booleans())
    is_ambiguous = draw(st.booleans())

    def apply(draft: Draft) -> Outcome:
        for part in chosen:
            name = weights_file(part)
            other = f"{part}/{stem(part)}.{variant}.safetensors"
            if is_beside:  # with other weights: the plain ones are meant
                scaled = {key: value * 2 for key, value in draft.tensors(part).items()}
                draft.write_tensors(part, scaled, f"{stem(part)}.{variant}.safetensors")
            else:
                draft.write(other, draft.read(name))
                if is_ambiguous:
                    draft.write(f"{part}/{stem(part)}.mine.safetensors", draft.read(name))
                draft.remove(name)
        unclear = not is_beside and is_ambiguous and variant in ("non_ema", "ema")
        return Outcome(names=tuple(str(draft.path / part) for part in chosen) if unclear else (), parts=tuple(chosen))

    return f"{model}: {chosen} {variant} beside={is_beside} ambiguous={is_ambiguous}", apply


@st.composite
def shards(draw: st.DrawFn) -> tuple[str, Variant]:
    """Weights in several files with a list of them, which may be wrong."""
    model = draw(st.sampled_from(MODELS))
    part = draw(st.sampled_from(weighted(model)))
    names = sorted(weights_of(model, part))
    number = draw(st.integers(1, 4))
    variant = draw(st.sampled_from(["", ".fp16"]))
    owners = {name: index * number // len(names) for index, name in enumerate(names)}
    chosen = draw(st.integers(0, number - 1))
    lost = draw(st.sampled_from(names))
    faults = (
        "none",
        "no list",
        "a shard is gone",
        "a shard is cut",
        "a shard lacks one",
        "a wild list",
        "an empty list",
    )
    fault = draw(st.sampled_from(faults))

    def apply(draft: Draft) -> Outcome:
        base = f"{stem(part)}{variant}"
        files = [f"{base}-{index + 1:05}-of-{number:05}.safetensors" for index in range(number)]
        tensors = draft.tensors(part)
        draft.remove(weights_file(part))
        for index, file in enumerate(files):
            own = {name: tensors[name] for name in names if owners[name] == index}
            if fault == "a shard lacks one":
                own.pop(lost, None)
            draft.write_tensors(part, own, file)
        listed: dict[str, str] = {name: files[owners[name]] for name in names}
        if fault == "a wild list":
            listed[lost] = "../unet/../elsewhere.safetensors"
        if fault == "an empty list":
            listed = {}
        index_name = f"{part}/{stem(part)}.safetensors.index{variant}.json"
        if fault != "no list":
            draft.write(index_name, json.dumps({"metadata": {}, "weight_map": listed}).encode())
        shard = f"{part}/{files[chosen]}"
        if fault == "a shard is gone":
            draft.remove(shard)
        if fault == "a shard is cut":
            draft.write(shard, draft.read(shard)[:-7])
        return Outcome(names=() if fault == "none" else (str(draft.path / part),), parts=(part,))

    return f"{model}: {part} in {number} shards{variant}, {fault}", apply


@st.composite
def odd_names(draw: st.DrawFn) -> tuple[str, Variant]:
    """Weights under another name, as a pickle, or half fetched."""
    model = draw(st.sampled_from(MODELS))
    part = draw(st.sampled_from(weighted(model)))
    base = stem(part)
    name = draw(
        st.sampled_from(
            [
                f"{base}.bin",
                "pytorch_model.bin",
                f"{base}.safetensors.incomplete",
                f"{base}.safetensors.aria2",
                f"{base}(1).safetensors",
                f"{base}-fp16.safetensors",
                "weights.safetensors",
                f"{base}.msgpack",
                f"{base}.ckpt",
            ]
        )
    )

    def apply(draft: Draft) -> Outcome:
        draft.write(f"{part}/{name}", draft.read(weights_file(part)))
        draft.remove(weights_file(part))
        return Outcome(names=(str(draft.path / part),))

    return f"{model}: {part} as {name}", apply


@st.composite
def odd_configs(draw: st.DrawFn) -> tuple[str, Variant]:
    """A configuration that is of another model than the weights or the other parts."""
    model = draw(st.sampled_from(MODELS))
    is_xl = model == "digits-sdxl"
    more = draw(st.integers(1, 5))
    changes: list[tuple[str, str, Any]] = [
        ("unet", "in_channels", 4 + more),
        ("unet", "out_channels", 4 + more),
        ("unet", "cross_attention_dim", 8 * more),
        ("unet", "layers_per_block", 2 + more),
        ("unet", "layers_per_block", 1),
        ("unet", "block_out_channels", [8 * more] * 3),
        ("unet", "class_embed_type", "timestep"),
        ("unet", "num_class_embeds", 1000),
        ("unet", "addition_embed_type", None if is_xl else "text_time"),
        ("unet", "addition_embed_type", "text_image"),
        ("unet", "encoder_hid_dim_type", "ip_image_proj"),
        (
            "unet",
            "use_linear_projection",
            not json.loads((model_folder(model) / "unet/config.json").read_text())["use_linear_projection"],
        ),
        ("unet", "down_block_types", ["NoSuchBlock"] * 3),
        ("unet", "in_channels", "four"),
        ("vae", "latent_channels", 4 + more),
        ("vae", "out_channels", 3 + more),
        ("vae", "layers_per_block", 1 + more),
        ("vae", "block_out_channels", [8, 16]),
        ("text_encoder", "hidden_size", 32 + 8 * more),
        ("text_encoder", "num_hidden_layers", 2 + more),
        ("text_encoder", "num_hidden_layers", 1),
        ("text_encoder", "vocab_size", 768 + 200 * more),
        ("text_encoder", "vocab_size", 768 - more),
        ("text_encoder", "max_position_embeddings", 16 - more),
        ("text_encoder", "eos_token_id", 100 + more),
        ("text_encoder", "hidden_size", "wide"),
    ]
    if is_xl:
        changes += [
            ("unet", "projection_class_embeddings_input_dim", 112 + more),
            ("unet", "addition_time_embed_dim", 8 + more),
            ("text_encoder_2", "projection_dim", 64 + more),
            ("text_encoder_2", "num_hidden_layers", 2 + more),
        ]
    own = {name: json.loads((model_folder(model) / name / "config.json").read_text()) for name in weighted(model)}
    part, key, value = draw(st.sampled_from([each for each in changes if own[each[0]].get(each[1]) != each[2]]))

    def apply(draft: Draft) -> Outcome:
        draft.edit(f"{part}/config.json", lambda config: config.update({key: value}))
        return Outcome(names=(str(draft.path),), parts=(part,))

    return f"{model}: {part} {key}={value}", apply


@st.composite
def other_tasks(draw: st.DrawFn) -> tuple[str, Variant]:
    """A part that is whole, with a configuration to match, and made for another task."""
    model = draw(st.sampled_from(MODELS))
    more = draw(st.integers(1, 5))

    def widened(name: str, dimension: int) -> Callable[[dict[str, torch.Tensor]], None]:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            before = tensors[name]
            shape = [*before.shape]
            shape[dimension] = more
            tensors[name] = torch.cat([before, torch.ones(shape)], dimension)

        return change

    def with_more_outputs(tensors: dict[str, torch.Tensor]) -> None:
        widened("conv_out.weight", 0)(tensors)
        widened("conv_out.bias", 0)(tensors)

    def with_more_colours(tensors: dict[str, torch.Tensor]) -> None:
        widened("decoder.conv_out.weight", 0)(tensors)
        widened("decoder.conv_out.bias", 0)(tensors)

    def with_classes(tensors: dict[str, torch.Tensor]) -> None:
        tensors["class_embedding.weight"] = torch.ones(10 * more, len(tensors["time_embedding.linear_2.bias"]))

    def with_times(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"):
            tensors[f"class_embedding.{name}"] = tensors[f"time_embedding.{name}"].clone()

    ways: tuple[tuple[str, str, Any, Callable[[dict[str, torch.Tensor]], None]], ...] = (
        ("unet", "in_channels", 4 + more, widened("conv_in.weight", 1)),
        ("unet", "out_channels", 4 + more, with_more_outputs),
        ("vae", "out_channels", 3 + more, with_more_colours),
        ("unet", "num_class_embeds", 10 * more, with_classes),
        ("unet", "class_embed_type", "timestep", with_times),
    )
    part, key, value, change = draw(st.sampled_from(ways))

    def apply(draft: Draft) -> Outcome:
        tensors = draft.tensors(part)
        change(tensors)
        draft.write_tensors(part, tensors)
        draft.edit(f"{part}/config.json", lambda config: config.update({key: value}))
        return Outcome(names=(str(draft.path / "unet"), str(draft.path / part)), parts=(part,))

    return f"{model}: {part} made for {key}={value}", apply


@st.composite
def harmless_changes(draw: st.DrawFn) -> tuple[str, Variant]:
    """What people and tools leave in a folder that is fine."""
    model = draw(st.sampled_from(MODELS))

    def extra_files(draft: Draft) -> None:
        for name in ("README.md", ".gitattributes", "unet/notes.txt", "model.ckpt", "unet/.DS_Store"):
            draft.write(name, LFS_POINTER)

    def without_the_checker(draft: Draft) -> None:
        draft.edit(
            "model_index.json",
            lambda index: index.update(
                safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
                feature_extractor=["transformers", "CLIPImageProcessor"],
            ),
        )

    def unknown_keys(draft: Draft) -> None:
        draft.edit("unet/config.json", lambda config: config.update(_note="mine"))
        draft.edit("model_index.json", lambda index: index.update(_note="mine"))

    def old_vae_names(draft: Draft) -> None:
        old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

        def renamed(name: str) -> str:
            for new, before in old.items() if "mid_block.attentions" in name else ():
                name = name.replace(new, before)
            return name

        draft.write_tensors("vae", {renamed(name): each for name, each in draft.tensors("vae").items()})

    def old_encoder_names(draft: Draft) -> None:
        tensors = {f"text_model.{name}": each for name, each in draft.tensors("text_encoder").items()}
        tensors["text_model.embeddings.position_ids"] = torch.arange(16)[None]
        draft.write_tensors("text_encoder", tensors)

    def a_whole_clip(draft: Draft) -> None:
        others = {"logit_scale": torch.ones(()), "vision_model.post_layernorm.weight": torch.ones(4)}
        draft.write_tensors("text_encoder", draft.tensors("text_encoder") | others)

    def a_shorter_prompt(draft: Draft) -> None:
        draft.edit("tokenizer/tokenizer_config.json", lambda config: config.update(model_max_length=length))

    def an_older_end(draft: Draft) -> None:
        draft.edit("text_encoder/config.json", lambda config: config.update(eos_token_id=2))

    def no_post_processor(draft: Draft) -> None:  # transformers makes one itself
        draft.edit("tokenizer/tokenizer.json", lambda config: config.update(post_processor=None))

    length = draw(st.integers(3, 16))
    ways = {
        no_post_processor: (),
        extra_files: (),
        without_the_checker: (),
        unknown_keys: ("unet",),
        old_vae_names: ("vae",),
        old_encoder_names: ("text_encoder",),
        a_whole_clip: ("text_encoder",),
        a_shorter_prompt: (),
        an_older_end: ("text_encoder",),
    }
    way = draw(st.sampled_from(list(ways)))

    def apply(draft: Draft) -> Outcome:
        way(draft)
        return Outcome(parts=ways[way])

    return f"{model}: {way.__name__}", apply


@st.composite
def other_models(draw: st.DrawFn) -> tuple[str, Variant]:
    """A folder of another task or family than is asked for, or one that lacks parts by its own index."""
    model = draw(st.sampled_from(MODELS))
    is_xl = model == "digits-sdxl"
    own = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    other = "StableDiffusionPipeline" if is_xl else "StableDiffusionXLPipeline"
    part = draw(st.sampled_from([*weighted(model), *tokenizers(model), "scheduler"]))
    entry = draw(st.sampled_from([None, [None, None], "absent", 7, ["diffusers"], {}, [1, 2]]))
    task = draw(st.sampled_from(OTHER_TASKS))
    nonsense = draw(st.sampled_from([None, 7, [], ["pipeline", "MyPipeline"], ""]))
    strange_class = draw(
        st.sampled_from(["UNet3DConditionModel", "T5EncoderModel", "CLIPModel", "nothing", "__class__"])
    )

    def set_class(value: object) -> Variant:
        def apply(draft: Draft) -> Outcome:
            draft.edit("model_index.json", lambda index: index.update(_class_name=value))
            return Outcome(names=(str(draft.path / "model_index.json"),))

        return apply

    def asked_as_other(draft: Draft) -> Outcome:
        return Outcome(names=(str(draft.path / "model_index.json"),), asked_class=other)

    def asked_as_own(_: Draft) -> Outcome:
        return Outcome(asked_class=own)

    def said_to_be_other(draft: Draft) -> Outcome:
        draft.edit("model_index.json", lambda index: index.update(_class_name=other))
        return Outcome(names=(str(draft.path),))

    def img2img_taken_for_text2img(draft: Draft) -> Outcome:
        draft.edit(
            "model_index.json", lambda index: index.update(_class_name=own.replace("Pipeline", "Img2ImgPipeline"))
        )
        return Outcome(asked_class=own)

    def lacks_part(draft: Draft) -> Outcome:
        def change(index: dict[str, Any]) -> None:
            if entry == "absent":
                del index[part]
            else:
                index[part] = entry

        draft.edit("model_index.json", change)
        return Outcome(names=(str(draft.path / "model_index.json"),))

    def strange_part(draft: Draft) -> Outcome:
        chosen = part if part != "scheduler" else "unet"
        draft.edit("model_index.json", lambda index: index.update({chosen: ["diffusers", strange_class]}))
        return Outcome(names=(str(draft.path / "model_index.json"),))

    def others_unet(draft: Draft) -> Outcome:
        source = model_folder("digits-sd15" if is_xl else "digits-sdxl")
        for name in ("unet/config.json", weights_file("unet")):
            draft.write(name, (source / name).read_bytes())
        return Outcome(names=(str(draft.path),))

    way = draw(
        st.sampled_from(
            [
                set_class(task),
                set_class(nonsense),
                asked_as_other,
                asked_as_own,
                said_to_be_other,
                img2img_taken_for_text2img,
                lacks_part,
                strange_part,
                others_unet,
            ]
        )
    )
    return f"{model}: {way.__name__} {task} {nonsense} {part} {entry} {strange_class}", way


@st.composite
def odd_tokenizers(draw: st.DrawFn) -> tuple[str, Variant]:
    """A tokenizer that was not made for the text encoder, or has lost what makes its tokens."""
    model = draw(st.sampled_from(MODELS))
    part = draw(st.sampled_from(tokenizers(model)))
    length = draw(st.one_of(st.integers(17, 1000), st.sampled_from([-1, 0, 1, 2, 77, 10**30])))
    kept = draw(st.integers(0, 200))
    settings, whole = f"{part}/tokenizer_config.json", f"{part}/tokenizer.json"

    def another_length(draft: Draft) -> None:
        draft.edit(settings, lambda config: config.update(model_max_length=length))

    def no_length(draft: Draft) -> None:
        draft.edit(settings, lambda config: config.pop("model_max_length"))

    def no_settings(draft: Draft) -> None:
        draft.remove(settings)

    def few_merges(draft: Draft) -> None:
        draft.edit(whole, lambda config: config["model"].update(merges=config["model"]["merges"][:kept]))

    def few_merges_as_text(draft: Draft) -> None:
        merges = draft.read(f"{part}/merges.txt").decode().splitlines()
        draft.write(f"{part}/merges.txt", "\n".join(merges[: kept + 1]).encode())
        draft.remove(whole)

    def small_vocabulary(draft: Draft) -> None:
        def change(config: dict[str, Any]) -> None:
            vocabulary = sorted(config["model"]["vocab"].items(), key=lambda item: item[1])
            config["model"]["vocab"] = dict(vocabulary[: 400 + kept])
            config["model"]["merges"] = []
            for index, added in enumerate(config["added_tokens"]):
                added["id"] = 400 + kept + index

        draft.edit(whole, change)

    def other_ends(draft: Draft) -> None:
        draft.edit(settings, lambda config: config.update(eos_token="!</w>", bos_token="a</w>"))

    def numbers_beyond(draft: Draft) -> None:
        def change(config: dict[str, Any]) -> None:
            vocabulary = config["model"]["vocab"]
            vocabulary[sorted(vocabulary)[kept]] = 768 + kept

        draft.edit(whole, change)

    ways = (
        another_length,
        no_length,
        no_settings,
        few_merges,
        few_merges_as_text,
        small_vocabulary,
        other_ends,
        numbers_beyond,
    )
    way = draw(st.sampled_from(ways))

    def apply(draft: Draft) -> Outcome:
        way(draft)
        return Outcome(names=(str(draft.path / part),))

    return f"{model}: {part} {way.__name__} {length} {kept}", apply


ODD_FOLDERS = st.one_of(
    damaged_files(),
    odd_json(),
    odd_tensors(),
    variants(),
    shards(),
    odd_names(),
    odd_configs(),
    other_tasks(),
    harmless_changes(),
    other_models(),
    odd_tokenizers(),
)
