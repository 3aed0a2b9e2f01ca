"""Scorers: the built-in one, and a real CLIP model of toy size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from boundd.worker.digits import model_folder
from boundd.worker.errors import ModelUnavailableError
from boundd.worker.scorers import ClipScorer, load_scorer
from tests.worker.model_folders import LFS_POINTER


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random weights and a tokenizer of letters, saved as a hub model is."""
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = text | {"image_size": 32, "patch_size": 8}
    text |= {"vocab_size": len(tokens), "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return folder


def test_clip_scores_between_0_and_100(clip_folder: Path) -> None:
    """Any size and shape of image, any length of prompt; the same pair always scores the same."""
    scorer = load_scorer(str(clip_folder))
    assert scorer is not None
    images = torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    prompts = ["a dog", "a very long prompt that goes on and on past the end of it", ""]
    scores = scorer.score(images, prompts)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert ((scores >= 0) & (scores <= 100)).all()
    assert torch.allclose(scorer.score(images[1:2], prompts[1:2]), scores[1:2], atol=1e-3)


@pytest.mark.parametrize(("room", "is_moved"), [(1.1, False), (2.0, True), (None, True)])
def test_a_scorer_goes_to_the_device_only_where_both_fit(clip_folder: Path, room: float | None, is_moved: bool) -> None:
    """It needs its weights' size and half as much again beside the pipeline; else it stays where it is. ('meta' is a
    device of torch's that every machine has.)"""
    scorer = load_scorer(str(clip_folder))
    assert isinstance(scorer, ClipScorer)
    size_bytes = sum(part.numel() * part.element_size() for part in CLIPModel.from_pretrained(clip_folder).parameters())
    scorer.place("meta", None if room is None else int(room * size_bytes))
    assert scorer.device_name == ("meta" if is_moved else "cpu")


def test_the_builtin_scorer_loads() -> None:
    """'builtin' is the digits' scorer, from the package."""
    scorer = load_scorer("builtin")
    assert scorer is not None
    assert scorer.score(torch.rand(2, 3, 32, 32), ["a 3", "a 4"]).shape == (2,)


def test_no_scorer_is_no_scorer() -> None:
    """The empty name."""
    assert load_scorer("") is None


def test_a_scorer_that_is_not_there_says_how_to_give_it(tmp_path: Path) -> None:
    """The error names what was looked for and the config key."""
    with pytest.raises(ModelUnavailableError, match=r"\[scorer\]") as caught:
        load_scorer(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_only_a_whole_clip_model_scores(clip_folder: Path, tmp_path: Path) -> None:
    """A text encoder's folder, and one whose file lacks weights: each was a scorer with random weights."""
    text_encoder = tmp_path / "text_encoder"
    shutil.copytree(model_folder("digits-sd15") / "text_encoder", text_encoder)
    shutil.copytree(model_folder("digits-sd15") / "tokenizer", text_encoder, dirs_exist_ok=True)
    with pytest.raises(ModelUnavailableError, match=r"is no CLIP model: .*'clip_text_model'"):
        load_scorer(str(text_encoder))
    lacking = tmp_path / "lacking"
    shutil.copytree(clip_folder, lacking)
    weights = load_file(lacking / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailableError, match=r"lacks 1 tensor of the .*visual_projection\.weight"):
        load_scorer(str(lacking))


def test_a_damaged_scorer_names_its_file(clip_folder: Path, tmp_path: Path) -> None:
    """Cut off, a pointer, no tokenizer, or a file instead of its folder."""

    def changed(name: str, file: str, content: bytes | None) -> Path:
        folder = tmp_path / name
        shutil.copytree(clip_folder, folder)
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        return folder

    weights = (clip_folder / "model.safetensors").read_bytes()
    cases = {
        changed("cut", "model.safetensors", weights[:-100]): "model.safetensors is cut off",
        changed("pointer", "model.safetensors", LFS_POINTER): "model.safetensors is a Git LFS pointer",
        changed("empty", "config.json", b""): "config.json is empty",
        changed("none", "model.safetensors", None): "holds no model.safetensors",
        clip_folder / "config.json": "is a file; give the folder",
    }
    for folder, reason in cases.items():
        with pytest.raises(ModelUnavailableError, match=reason) as caught:
            load_scorer(str(folder))
        assert str(folder) in str(caught.value)


def test_a_scorer_of_a_variant_loads(clip_folder: Path, tmp_path: Path) -> None:
    """Only half-precision files, as 'hf download' may leave."""
    shutil.copytree(clip_folder, tmp_path / "fp16")
    (tmp_path / "fp16" / "model.safetensors").rename(tmp_path / "fp16" / "model.fp16.safetensors")
    assert load_scorer(str(tmp_path / "fp16")) is not None
