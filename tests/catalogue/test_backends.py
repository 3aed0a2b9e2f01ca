"""Kinds of devices: a worker is told of its own device and of no other."""

from __future__ import annotations

import pytest

from boundd.catalogue.backends import AUTO, BACKENDS
from boundd.config.schema import DevicesTable


@pytest.mark.parametrize("name", BACKENDS)
def test_a_worker_sees_its_device_alone(name: str) -> None:
    """A GPU by its UUID, in the order of the bus; everything else hides every GPU."""
    told = BACKENDS[name].environment("GPU-1")
    assert told["CUDA_VISIBLE_DEVICES"] == ("GPU-1" if name == "nvml" else "")
    assert told["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize("name", [*BACKENDS, AUTO])
def test_every_kind_can_be_asked_for(name: str) -> None:
    """In a config; another name is refused with those that there are."""
    simulated = [{"name": "A", "memory": "1GiB"}] if name == "simulated" else []
    assert DevicesTable.model_validate({"backend": name, "simulated": simulated}).backend == name
    with pytest.raises(ValueError, match=f"must be one of auto, {', '.join(BACKENDS)}, not 'rocm'"):
        DevicesTable.model_validate({"backend": "rocm"})


def test_the_hosts_memory_is_charged_once() -> None:
    """On the CPU a worker has no context, and its memory is the host's; a GPU's is its own."""
    assert (BACKENDS["cpu"].is_host, BACKENDS["cpu"].context_bytes) == (True, 0)
    assert not any(BACKENDS[name].is_host for name in ("nvml", "simulated"))
