"""Fixtures: the shipped pipelines and scorer, each loaded once; one thread."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from boundd.worker.digits import scorer_folder
from boundd.worker.digits.scorer import DigitsScorer
from tools.digits.measure import load_pipeline


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and on a busy machine the two wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shipped_pipeline() -> Callable[[str], Any]:
    """Loads a built-in model by its name, with DDIM."""
    return cache(lambda name: load_pipeline(name, "DDIM"))


@pytest.fixture(scope="session")
def scorer() -> DigitsScorer:
    """The shipped scorer."""
    return DigitsScorer.from_pretrained(scorer_folder())


@pytest.fixture
def noise() -> torch.Tensor:
    """20 images without a digit: uniform noise, (20, 3, 32, 32) in [0, 1]."""
    return torch.rand((20, 3, 32, 32), generator=torch.Generator().manual_seed(0))
