"""How attention is computed: as was asked, in baseline and variant alike, or refused with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models import attention_processor

from boundd.catalogue.options import ATTENTIONS
from boundd.worker.attention import check_attention
from boundd.worker.devices import open_device
from boundd.worker.errors import BadDataError
from boundd.worker.methods import load_method
from boundd.worker.pipelines import describe, load_pipeline
from boundd.worker.sampling import Sampler, cut_batches
from tests.worker.conftest import MakeSettings

PROCESSORS = {"sdpa": "AttnProcessor2_0", "eager": "AttnProcessor", "sliced": "SlicedAttnProcessor"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each kind of processor really ran."""
    counted: Counter[str] = Counter()
    for name in PROCESSORS.values():
        kind: Any = getattr(attention_processor, name)

        def counting(self: Any, *arguments: Any, _original: Any = kind.__call__, **options: Any) -> Any:
            counted[type(self).__name__] += 1
            return _original(self, *arguments, **options)

        monkeypatch.setattr(kind, "__call__", counting)
    return counted


def load(make_settings: MakeSettings, attention: str) -> tuple[Any, Any, Any]:
    """A digits pipeline, its settings, and a sampler."""
    settings = make_settings(attention=attention)
    return load_pipeline(settings, open_device(settings, None)), settings, Sampler(settings, "cpu")


@pytest.mark.parametrize("attention", PROCESSORS)
@pytest.mark.parametrize("name", [None, "deepcache", "tome"])
def test_it_is_computed_as_was_asked(
    attention: str, name: str | None, make_settings: MakeSettings, calls: Counter[str]
) -> None:
    """By the plain pipeline and under a method, and no other way in the UNet; afterwards the pipeline is as before.

    Seen to fail with `set_attention` left out of `load_pipeline`, for eager and sliced.
    """
    pipe, settings, sampler = load(make_settings, attention)
    batch = cut_batches(["a 3"], 1, 1, 0)[0]
    before = sampler.generate(pipe, batch)
    calls.clear()
    if name is None:
        sampler.generate(pipe, batch)
    else:
        method = load_method(name)
        point = method.grid(describe(pipe, settings), "coarse")[0]
        with method.applied(pipe, point, pipe) as call:
            sampler.generate(call, batch)
    # Sliced attention is the UNet's alone: the autoencoder, once a call, keeps SDPA.
    others = {kind: count for kind, count in calls.items() if kind != PROCESSORS[attention]}
    assert calls[PROCESSORS[attention]] > 0
    assert others == ({"AttnProcessor2_0": 1} if attention == "sliced" else {})
    assert torch.equal(sampler.generate(pipe, batch), before)


def test_all_ways_give_the_same_images(make_settings: MakeSettings) -> None:
    """Up to rounding."""
    batch = cut_batches(["a 3"], 2, 2, 0)[0]
    images = []
    for attention in PROCESSORS:
        pipe, _, sampler = load(make_settings, attention)
        images.append(sampler.generate(pipe, batch))
    for other in images[1:]:
        assert float((other - images[0]).abs().max()) < 1e-3


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_tgate_takes_sdpa_only(attention: str, make_settings: MakeSettings) -> None:
    """Its own attention is always SDPA: the baseline's must be too."""
    pipe, _, _ = load(make_settings, "sdpa")
    reason = load_method("tgate").requires(describe(pipe, make_settings(attention=attention)))
    assert (reason is None) == (attention == "sdpa")
    assert reason is None or (attention in reason and "--attention sdpa" in reason)


def test_xformers_needs_a_gpu_and_the_package(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are said before anything is loaded."""
    settings = make_settings(attention="xformers", pipe="SD1.5", source="nobody/no-such-model")
    with pytest.raises(BadDataError, match="on a GPU only"):
        load_pipeline(settings, open_device(settings, None))
    monkeypatch.setattr("boundd.worker.attention.find_spec", lambda _: None)
    with pytest.raises(BadDataError, match="not installed"):
        check_attention("xformers", is_cuda=True)
