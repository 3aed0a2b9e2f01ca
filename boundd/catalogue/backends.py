"""The kinds of devices that boundd works on, and what differs between them beside how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Backend:
    """One kind of device."""

    name: str
    """As in the config's `devices.backend`."""
    context_bytes: int
    """What a process takes of the device before its allocator has any of it, which the allocator doesn't count."""
    is_host: bool = False
    """Whether the device's memory is the machine's own: it isn't charged to the host's ledger again, and not capped."""
    lists_processes: bool = False
    """Whether its driver lists the processes that use it, so that being alone there can be seen."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What a worker's environment says of its device; `{uuid}` stands for the device's."""

    def environment(self, uuid: str) -> dict[str, str]:
        """The variables that have a worker use one device of this kind and no other."""
        return {name: value.format(uuid=uuid) for name, value in self.variables.items()}


AUTO = "auto"
"""What stands in a config for the backend that fits the machine."""
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""A worker on the CPU sees no GPU at all."""
BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "nvml",
            # The CUDA context with lazy loading, about 300 MB, and what the libraries take beside it.
            context_bytes=512 * MIB,
            lists_processes=True,
            # Without the order CUDA sorts by speed, and the same index means another device than NVML's.
            variables={"CUDA_VISIBLE_DEVICES": "{uuid}", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        ),
        Backend("cpu", context_bytes=0, is_host=True, variables=NO_GPU),
        Backend("simulated", context_bytes=512 * MIB, variables=NO_GPU),
    )
}
"""Every backend by its name."""
