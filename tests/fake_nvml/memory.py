"""Device memory of the fake NVML, for a worker: what CUDA and torch's allocator would be to a real one.

A worker finds the fake through LD_LIBRARY_PATH and FAKE_NVML_STATE, which it inherits from whoever started the daemon,
and its device through CUDA_VISIBLE_DEVICES. What it takes is really gone for its neighbours; what they have taken is
refused with torch's own words. When it dies, however it dies, its memory is free again.

It needs the standard library only, and may be run with any Python.
"""

from __future__ import annotations

import ctypes
import os

GIB = 1024**3
MIB = 1024**2
CONTEXT_BYTES = 300 * MIB
"""About what a CUDA context costs with lazy loading; torch's counters and its cap don't see it."""
OUT_OF_MEMORY = 2


class OutOfMemoryError(RuntimeError):
    """The device, or the allocator's cap, hasn't that much left. The words are torch's."""

    def __init__(self, message: str, requested_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.requested_bytes = requested_bytes
        self.free_bytes = free_bytes


class CudaError(RuntimeError):
    """The device can't be used at all: lost, prohibited, or somebody else's."""


class DeviceMemory:
    """One process's memory on one device: a context, and what is allocated under a cap.

    `uuid` is the device's, by default the one of CUDA_VISIBLE_DEVICES; `cap_bytes` what the allocator may hold without
    the context, by default BOUNDD_MEMORY_CAP_BYTES, and without that all there is. Pass `math.inf` for a worker that
    ignores its cap.

    Raises:
        OutOfMemoryError: the device has no room for the context.
        CudaError: the device takes no process.
        OSError: there is no fake NVML here.
    """

    def __init__(
        self, uuid: str | None = None, *, cap_bytes: float | None = None, context_bytes: int = CONTEXT_BYTES
    ) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._uuid = (os.environ["CUDA_VISIBLE_DEVICES"] if uuid is None else uuid).encode()
        told = os.environ.get("BOUNDD_MEMORY_CAP_BYTES")
        self.cap_bytes = cap_bytes if cap_bytes is not None else float(told) if told else float("inf")
        self.held_bytes = 0
        """What is allocated now, the context left out, as torch's `memory_reserved` would say."""
        self.peak_bytes = 0
        """The most that it was."""
        self._take(context_bytes)

    def allocate(self, size_bytes: int) -> None:
        """Take so many bytes more.

        Raises:
            OutOfMemoryError: the cap or the device doesn't allow it.
            CudaError: the device is gone.
        """
        if self.held_bytes + size_bytes > self.cap_bytes:
            free, total = self.info()
            raise _out_of_memory(size_bytes, free, total, f" {_gib(int(self.cap_bytes))} allowed;")
        self._take(size_bytes)
        self.held_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def resize(self, size_bytes: int) -> None:
        """Hold exactly so many bytes from now on; raises what `allocate` does."""
        if size_bytes >= self.held_bytes:
            self.allocate(size_bytes - self.held_bytes)
        else:
            self._library.fakeFree(self._uuid, ctypes.c_uint64(self.held_bytes - size_bytes))
            self.held_bytes = size_bytes

    def info(self) -> tuple[int, int]:
        """Free and total bytes of the device, as `torch.cuda.mem_get_info` tells them.

        Raises:
            CudaError: the device is gone.
        """
        free, total = ctypes.c_uint64(), ctypes.c_uint64()
        error = self._library.fakeMemGetInfo(self._uuid, ctypes.byref(free), ctypes.byref(total))
        if error:
            raise CudaError(f"CUDA error: {error}")
        return free.value, total.value

    def _take(self, size_bytes: int) -> None:
        free = ctypes.c_uint64()
        error = self._library.fakeMalloc(self._uuid, ctypes.c_uint64(size_bytes), ctypes.byref(free))
        if error == OUT_OF_MEMORY:
            raise _out_of_memory(size_bytes, free.value, self.info()[1])
        if error:
            raise CudaError(f"CUDA error: {error}")


def _out_of_memory(size_bytes: int, free: int, total: int, allowed: str = "") -> OutOfMemoryError:
    message = (
        f"CUDA out of memory. Tried to allocate {_gib(size_bytes)}. GPU 0 has a total capacity of {_gib(total)} of "
        f"which {_gib(free)} is free.{allowed}"
    )
    return OutOfMemoryError(message, size_bytes, free)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
