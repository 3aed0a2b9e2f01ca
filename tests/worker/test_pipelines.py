"""Loading: schedulers keep what the model was trained with, and what can't be had is said in full."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from boundd.catalogue.schedulers import SCHEDULERS as ALL_SCHEDULERS
from boundd.protocol.environment import WorkerEnvironment
from boundd.worker.architectures import ARCHITECTURES
from boundd.worker.devices import open_device
from boundd.worker.digits import PROMPTS as DIGIT_PROMPTS
from boundd.worker.digits import model_folder
from boundd.worker.errors import BadDataError, DeviceFailedError, ModelUnavailableError, PackageError
from boundd.worker.pipelines import build_scheduler, load_pipeline
from boundd.worker.prompts import PROMPTS
from boundd.worker.sampling import Sampler, cut_batches, read_prompts, to_host
from boundd.worker.settings import resolve
from tests.worker.conftest import Load, MakeSettings


@pytest.mark.parametrize("name", ALL_SCHEDULERS)
def test_every_scheduler_keeps_the_prediction_type(name: str, load: Load) -> None:
    """A velocity model stays one, whichever scheduler of the catalogue it gets."""
    config = load("digits-sd21", "DDIM").scheduler.config
    assert config["prediction_type"] == "v_prediction"
    scheduler = build_scheduler(config, ALL_SCHEDULERS[name])
    assert scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.config["beta_end"] == config["beta_end"]
    if name.startswith("DPM-Solver++"):
        assert scheduler.config["algorithm_type"] == "dpmsolver++"


def test_a_folder_loads_like_the_hub(tmp_path: Path, make_settings: MakeSettings) -> None:
    """A model under a name of its own, from a folder, its class read from its index."""
    folder = tmp_path / "mine"
    shutil.copytree(model_folder("digits-sdxl"), folder)
    settings = make_settings(pipe="mine", source=str(folder), dtype="bfloat16", resolution=64, scorer="")
    device = open_device(settings, None)
    pipe = load_pipeline(settings, device)
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    assert pipe.unet.dtype == torch.bfloat16
    batch = cut_batches(["a 3"], 1, 1, 0)[0]
    assert Sampler(settings, "cpu").generate(pipe, batch).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("source", ["{tmp}", "{tmp}/none", "./none", "nobody/no-such-model"])
def test_a_model_that_is_not_there(
    source: str, tmp_path: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder, a missing one, and an id which is not in the cache while the hub is out of reach."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = make_settings(pipe="SD1.5", source=source.format(tmp=tmp_path))
    with pytest.raises(ModelUnavailableError) as caught:
        load_pipeline(settings, open_device(settings, None))
    message = str(caught.value)
    assert settings.source in message
    for hint in ('[models."SD1.5"]', "--source", "cache", "hub"):
        assert hint in message


def test_a_broken_model_is_unavailable(tmp_path: Path, make_settings: MakeSettings) -> None:
    """Weights that were cut off do not load, and that is the model's fault, not a crash."""
    folder = tmp_path / "cut"
    shutil.copytree(model_folder("digits-sd15"), folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    settings = make_settings(pipe="SD1.5", source=str(folder))
    with pytest.raises(ModelUnavailableError):
        load_pipeline(settings, open_device(settings, None))


@pytest.mark.parametrize(("device", "reason"), [("tpu", "must be cpu, cuda"), ("cuda:7", "sees no CUDA device")])
def test_a_device_that_is_not_there(device: str, reason: str, make_settings: MakeSettings) -> None:
    """It is never replaced by another one silently."""
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BadDataError, match=reason):
        open_device(make_settings(device=device), None)


@pytest.mark.parametrize("given", ["GPU-8a2f", "MIG-1"])
def test_a_gpu_that_torch_cannot_use_is_never_replaced_by_the_cpu(given: str, make_settings: MakeSettings) -> None:
    """The figures would pass for the GPU's. Who is to blame is the installation, or the device, and not the cell."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    kind = PackageError if torch.version.cuda is None else DeviceFailedError
    with pytest.raises(kind, match=f"the worker was given {given}"):
        open_device(make_settings(device=None), None, given)
    assert not open_device(make_settings(device="cpu"), None, given).is_cuda, "who asks for the CPU gets it"
    assert not open_device(make_settings(device=None), None, "").is_cuda
    assert not open_device(make_settings(device=None), None, "0").is_cuda, "a shell's, on a machine without a GPU"


def test_on_the_cpu_one_thread_computes(make_settings: MakeSettings) -> None:
    """So that its share of the core can be judged."""
    assert open_device(make_settings(), None).threads == 1
    assert torch.get_num_threads() == 1


def test_dtypes_by_device(make_settings: MakeSettings) -> None:
    """Full precision on the CPU, and whatever was asked for."""
    device = open_device(make_settings(), None)
    assert device.dtype_for(make_settings()) == "float32"
    assert device.dtype_for(make_settings(dtype="bfloat16")) == "bfloat16"


def test_samples_do_not_depend_on_the_batching(load: Load, make_settings: MakeSettings) -> None:
    """Prompt and seed belong to the index; the images differ by rounding only."""
    pipe, sampler = load("digits-sd15", "DDIM"), Sampler(make_settings(), "cpu")
    whole = cut_batches(["a 1", "a 2", "a 3"], 4, 4, seed=9)
    parts = cut_batches(["a 1", "a 2", "a 3"], 4, 3, seed=9)
    assert [batch.seeds for batch in parts] == [(9, 10, 11), (12,)]
    assert parts[1].prompts == ("a 1",)
    together = torch.cat([sampler.generate(pipe, batch) for batch in whole])
    apart = torch.cat([sampler.generate(pipe, batch) for batch in parts])
    assert (together - apart).abs().max() < 1e-3


def test_where_prompts_come_from(tmp_path: Path, make_settings: MakeSettings) -> None:
    """A file's lines; the digits' own for digits; the shipped list for everything else."""
    listing = tmp_path / "prompts.txt"
    listing.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert read_prompts(make_settings(prompts=str(listing))) == ["a cat", "a dog"]
    assert read_prompts(make_settings()) == DIGIT_PROMPTS
    options = {"pipe": "SD1.5", "sched": "DDIM", "steps": 2, "search_targets": "tome"}
    assert read_prompts(resolve(options, WorkerEnvironment())) == PROMPTS
    assert len(set(PROMPTS)) == len(PROMPTS) >= 64


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe", None])
def test_prompts_that_cannot_be_used(content: bytes | None, tmp_path: Path, make_settings: MakeSettings) -> None:
    """Empty, not text, or not there."""
    listing = tmp_path / "prompts.txt"
    if content is not None:
        listing.write_bytes(content)
    with pytest.raises(BadDataError, match="--prompts"):
        read_prompts(make_settings(prompts=str(listing)))


def test_images_that_are_no_numbers_are_an_error() -> None:
    """Half precision can overflow to NaN, which would score like anything else."""
    images = torch.rand(1, 3, 4, 4, dtype=torch.float16)
    assert to_host(images, "x").dtype == torch.float32
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadDataError, match="not finite"):
        to_host(images, "the baseline")


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a byte-order mark", b"\xef\xbb\xbfa seven\na two\n", ["a seven", "a two"]),
        ("UTF-16 with its mark", "\ufeffa seven\r\na two".encode("utf-16-le"), ["a seven", "a two"]),
        ("line ends of Windows", b"a seven\r\na two\r\n", ["a seven", "a two"]),
        ("line ends of old Macs", b"a seven\ra two\r", ["a seven", "a two"]),
        ("mixed line ends", b"a seven\r\n\r\ra two\n\n", ["a seven", "a two"]),
        ("U+2028", "a\u2028seven\na two".encode(), ["a\u2028seven", "a two"]),
        ("U+0085", "a\x85seven".encode(), ["a\x85seven"]),
        ("a form feed", b"a\x0cseven\x1ein\x0bink", ["a\x0cseven\x1ein\x0bink"]),
    ],
)
def test_a_prompt_is_a_line_as_written(
    name: str, content: bytes, prompts: list[str], tmp_path: Path, make_settings: MakeSettings
) -> None:
    """Whatever editor wrote the file; seen to fail with `str.splitlines`, which makes two prompts of one."""
    listing = tmp_path / "prompts.txt"
    listing.write_bytes(content)
    assert read_prompts(make_settings(prompts=str(listing))) == prompts


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a seven\na two\xff\n", "line 2: is not UTF-8; save it as UTF-8"),
        ("a seven\na two".encode("utf-16-le"), "line 1: a NUL"),
        (b"a\n" + b"x" * 10_001, "line 2: 10,001 characters"),
        (b"", "holds no prompts"),
    ],
)
def test_a_prompt_file_that_is_refused_says_where(
    content: bytes, reason: str, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """The line, and what to do."""
    listing = tmp_path / "prompts.txt"
    listing.write_bytes(content)
    with pytest.raises(BadDataError, match=re.escape(reason)):
        read_prompts(make_settings(prompts=str(listing)))


def test_a_folder_of_prompts_is_no_file(tmp_path: Path, make_settings: MakeSettings) -> None:
    """Nor is a pipe, which would wait for ever."""
    with pytest.raises(BadDataError, match="is no file"):
        read_prompts(make_settings(prompts=str(tmp_path)))


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("mine/unet", "is a part of the model in {tmp}/mine; give that folder"),
        (".", "the model is in {tmp}/mine; give that folder"),
        ("single", "{tmp}/single/sd.safetensors is a model in a single file"),
        ("single/sd.safetensors", "{tmp}/single/sd.safetensors is a file"),
    ],
)
def test_a_place_beside_the_model(place: str, reason: str, tmp_path: Path, make_settings: MakeSettings) -> None:
    """A part's folder, the folder above, a single file: what to give instead is said."""
    shutil.copytree(model_folder("digits-sd15"), tmp_path / "mine")
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "sd.safetensors").write_bytes(b"x")
    settings = make_settings(pipe="mine", source=str(tmp_path / place), scorer="")
    with pytest.raises(ModelUnavailableError, match=re.escape(reason.format(tmp=tmp_path))):
        load_pipeline(settings, open_device(settings, None))


def test_only_a_variant_is_loaded(tmp_path: Path, make_settings: MakeSettings) -> None:
    """The files that `hf download --include '*.fp16.*'` leaves, by the whole way that a search takes."""
    folder = tmp_path / "mine"
    shutil.copytree(model_folder("digits-sd15"), folder)
    for part in ("unet", "vae", "text_encoder"):
        (weights,) = (folder / part).glob("*.safetensors")
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    settings = make_settings(pipe="mine", source=str(folder), dtype="float16", scorer="")
    pipe = load_pipeline(settings, open_device(settings, None))
    assert pipe.unet.dtype == torch.float16
    assert not any(part.is_meta for part in pipe.unet.parameters())


def test_a_name_that_stands_for_another_architecture(tmp_path: Path, make_settings: MakeSettings) -> None:
    """A folder of SD2.1's own architecture, asked for as SD1.5; seen to be measured under the wrong name."""
    folder = tmp_path / "mine"
    shutil.copytree(model_folder("digits-sd15"), folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | dict(ARCHITECTURES["SD2.1"].unet)))
    settings = make_settings(pipe="SD1.5", source=str(folder), scorer="")
    with pytest.raises(BadDataError, match=r"holds a SD2\.1 .* name the model SD2\.1"):
        load_pipeline(settings, open_device(settings, None))
