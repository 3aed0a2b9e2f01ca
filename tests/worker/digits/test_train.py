"""Training: the whole way runs in a handful of steps, and a seed decides every bit of what comes out."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from boundd.worker.digits import DIGIT_WORDS
from boundd.worker.digits.scorer import DigitsScorer
from boundd.worker.digits.tokenizer import FILLER_WORDS
from tools.digits.train import main


def weights_in(folder: Path) -> dict[str, bytes]:
    """Every weight file below a folder, by its relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}


def test_a_quick_training_is_whole_and_decided_by_its_seed(tmp_path: Path) -> None:
    """It trains every part, saves what loads and runs, and gives the same bits for the same seed alone."""
    names = ["digits-scorer", "digits-sdxl"]
    for folder, seed in (("first", "0"), ("again", "0"), ("other", "1")):
        main(["--out", str(tmp_path / folder), "--quick", "--seed", seed, "--only", *names])
    first, again, other = (weights_in(tmp_path / folder) for folder in ("first", "again", "other"))
    assert len(first) == 5, "a scorer, an autoencoder, two text encoders, a UNet"
    assert first == again
    assert first.keys() == other.keys()
    assert not [file for file in first if first[file] == other[file]]

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "first" / "digits-sdxl")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("the digit 7", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 32, 32)
    assert DigitsScorer.from_pretrained(tmp_path / "first" / "digits-scorer").classify(torch.rand(2, 3, 32, 32)).shape


def test_a_part_alone_is_as_in_a_whole_run(tmp_path: Path) -> None:
    """`--only` doesn't change the weights of what it trains."""
    main(["--out", str(tmp_path / "two"), "--quick", "--only", "digits-sd15", "digits-sd21"])
    main(["--out", str(tmp_path / "one"), "--quick", "--only", "digits-sd21"])
    assert weights_in(tmp_path / "two" / "digits-sd21") == weights_in(tmp_path / "one" / "digits-sd21")


def test_an_unknown_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the names that there are."""
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--only", "digits-sd3"])
    assert "digits-sdxl" in capsys.readouterr().err


def test_no_filler_word_names_a_digit() -> None:
    """The text encoders are told that these words mean nothing."""
    assert not set(FILLER_WORDS) & set(DIGIT_WORDS)
    # "one's" would be read as "one" and "'s".
    assert all(word.isalpha() for word in FILLER_WORDS)
