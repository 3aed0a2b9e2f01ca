"""Kinds of devices: a worker is told of its own device and of no other."""

from __future__ import annotations

from typing import get_args

import pytest

from boundd.catalogue.backends import BACKENDS
from boundd.devices.discover import Backend


@pytest.mark.parametrize("name", BACKENDS)
def test_a_worker_sees_its_device_alone(name: str) -> None:
    """A GPU by its UUID, in the order of the bus; everything else hides every GPU."""
    told = BACKENDS[name].environment("GPU-1")
    assert told["CUDA_VISIBLE_DEVICES"] == ("GPU-1" if name == "nvml" else "")
    assert told["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_every_backend_of_the_config_is_a_kind() -> None:
    """`auto` chooses one of them."""
    assert {*BACKENDS, "auto"} == set(get_args(Backend))


def test_the_hosts_memory_is_charged_once() -> None:
    """On the CPU a worker has no context, and its memory is the host's; a GPU's is its own."""
    assert (BACKENDS["cpu"].is_host, BACKENDS["cpu"].context_bytes) == (True, 0)
    assert not any(BACKENDS[name].is_host for name in ("nvml", "simulated"))
