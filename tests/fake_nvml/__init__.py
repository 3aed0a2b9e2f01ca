"""Builds and steers the fake NVML, a real shared library that the unmodified `pynvml` loads.

`build` compiles it; a `FakeNvml` owns the state that its library answers from. Setting an attribute of
`fake.devices[n]` or `fake.header` takes effect at the next NVML call of any process that has loaded it. Workers take
device memory through `memory.py`. Nothing here needs pytest: a demo and the benchmarks use it too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

GIB = 1024**3
COMPUTE, GRAPHICS, MPS = 1, 2, 4
"""The lists that a process can be in, as bits of `FakeProcess.kinds`."""
MAX_DEVICES = 16
MAX_PROCESSES = 128
MAX_XIDS = 16
LIBRARY = "libnvidia-ml.so.1"
_STEERING = "libfake_nvml.so"
"""The same code under another name: loaded as NVML, it would be what this process itself takes for its driver."""
_NO_ERROR = 0
_CUDA_OUT_OF_MEMORY = 2


class FakeProcess(ctypes.Structure):
    """A process on a device; pid 0 is a free slot, and one with `start_ticks` frees its bytes when it dies."""

    _fields_ = (
        ("pid", ctypes.c_uint32),
        ("hidden", ctypes.c_uint32),
        ("kinds", ctypes.c_uint32),
        ("shown_pid", ctypes.c_uint32),
        ("start_ticks", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
    )


class FakeDevice(ctypes.Structure):
    """A device and its faults; errors are NVML's codes, 0 for none."""

    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("total", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64),
        ("foreign", ctypes.c_uint64),
        ("lost", ctypes.c_int32),
        ("handle_error", ctypes.c_int32),
        ("identity_error", ctypes.c_int32),
        ("memory_error", ctypes.c_int32),
        ("memory_v2_error", ctypes.c_int32),
        ("process_error", ctypes.c_int32),
        ("event_error", ctypes.c_int32),
        ("ecc_error", ctypes.c_int32),
        ("graphics_error", ctypes.c_int32),
        ("mps_error", ctypes.c_int32),
        ("compute_mode", ctypes.c_uint32),
        ("mig_mode", ctypes.c_uint32),
        ("slow_ms", ctypes.c_uint32),
        ("hang", ctypes.c_uint32),
        ("bytes_unknown", ctypes.c_uint32),
        ("crash", ctypes.c_uint32),
        ("remap_pending", ctypes.c_uint32),
        ("remap_failed", ctypes.c_uint32),
        ("retired_pending", ctypes.c_uint32),
        ("recovery_action", ctypes.c_uint32),
        ("memory_unknown", ctypes.c_uint32),
        ("free_excess", ctypes.c_uint64),
        ("ecc_uncorrected", ctypes.c_uint64),
        ("mig_parent", ctypes.c_int32),
        ("xid_count", ctypes.c_uint32),
        ("xids", ctypes.c_uint64 * MAX_XIDS),
        ("process_queries", ctypes.c_uint64),
        ("processes", FakeProcess * MAX_PROCESSES),
    )


class FakeState(ctypes.Structure):
    """All of the shared file but the lock at its end, which is the library's own."""

    _fields_ = (
        ("state_size", ctypes.c_uint32),
        ("device_count", ctypes.c_uint32),
        ("init_error", ctypes.c_int32),
        ("count_error", ctypes.c_int32),
        ("init_ms", ctypes.c_uint32),
        ("init_hang", ctypes.c_uint32),
        ("driver", ctypes.c_char * 80),
        ("devices", FakeDevice * MAX_DEVICES),
    )


def build(folder: Path) -> Path:
    """Compile the fake as `folder`/libnvidia-ml.so.1 with gcc; returns `folder`, for LD_LIBRARY_PATH.

    Raises:
        subprocess.CalledProcessError: gcc failed; it says why on standard error.
        FileNotFoundError: there is no gcc.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = folder / "fake_nvml.o"
    compiling = ["gcc", "-c", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(code)]
    subprocess.run([*compiling, str(Path(__file__).with_name("fake_nvml.c"))], check=True)
    for name in (LIBRARY, _STEERING):
        linking = ["gcc", "-shared", "-pthread", f"-Wl,-soname,{name}", "-o", str(folder / name), str(code)]
        subprocess.run(linking, check=True)
    return folder


class FakeNvml:
    """The state of a fake driver, kept in `path`; without devices until `add` is called."""

    def __init__(self, path: Path, library_folder: Path, driver: str = "550.54.14") -> None:
        self.path = path
        self._library_folder = library_folder
        self._library = ctypes.CDLL(str(library_folder / _STEERING))
        assert self._library.fakeLayout() == ctypes.sizeof(FakeState), "fake_nvml.c and __init__.py differ"
        if self._library.fakeCreate(os.fsencode(path)) != 0:
            raise OSError(f"the state of the fake NVML could not be made at {path}")
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.header = FakeState.from_buffer(self._map)
        self.header.driver = driver.encode()

    @property
    def devices(self) -> ctypes.Array[FakeDevice]:
        """The devices, MIG instances among them, in the order they were added; only the first are in use."""
        return self.header.devices

    @property
    def variables(self) -> dict[str, str]:
        """What a process must have in its environment before it starts, to find the fake instead of a real driver."""
        return {"LD_LIBRARY_PATH": str(self._library_folder), "FAKE_NVML_STATE": str(self.path)}

    @property
    def environ(self) -> dict[str, str]:
        """This process's environment with those variables."""
        return os.environ | self.variables

    def add(self, uuid: str, name: str = "Fake GPU", total_gib: float = 80, mig_parent: int = -1) -> FakeDevice:
        """Add a device, or an instance of the device number `mig_parent`; 1/100 of its memory is the driver's own."""
        device: FakeDevice = self.devices[self.header.device_count]
        device.uuid, device.name, device.mig_parent = uuid.encode(), name.encode(), mig_parent
        device.total = int(total_gib * GIB)
        device.reserved = device.total // 100
        self.header.device_count += 1
        return device

    def allocate(self, index: int, pid: int, size_bytes: int, *, hidden: bool = False, bound: bool = False) -> None:
        """Let `pid` take so much more of a device.

        A `hidden` process isn't listed, though its memory is in use. What a `bound` one holds is free once it is dead;
        otherwise the pid need not exist.

        Raises:
            MemoryError: the device hasn't that much left, or no room for one more process.
            OSError: the device takes no process at all: it is lost, prohibited, or divided.
        """
        free = ctypes.c_uint64()
        error = self._library.fakeAllocate(
            ctypes.byref(self.header), index, pid, ctypes.c_uint64(size_bytes), hidden, bound, ctypes.byref(free)
        )
        if error == _CUDA_OUT_OF_MEMORY:
            raise MemoryError(f"device {index} has {free.value} bytes left, not {size_bytes}")
        if error != _NO_ERROR:
            raise OSError(f"device {index} takes no process: CUDA error {error}")

    def process(self, index: int, pid: int) -> FakeProcess:
        """A process on a device, to change which lists it is in (`kinds`), or by which pid (`shown_pid`).

        Raises:
            KeyError: it is not there.
        """
        for process in self.devices[index].processes:
            if process.pid == pid:
                return process
        raise KeyError(pid)

    def release(self, index: int, pid: int) -> None:
        """Take everything of `pid` off a device."""
        self._library.fakeRelease(ctypes.byref(self.header), index, pid, ctypes.c_uint64(2**64 - 1), True)

    def held_bytes(self, index: int) -> int:
        """What processes hold of a device as its list has it, dead ones among them until somebody looks."""
        return sum(process.bytes for process in self.devices[index].processes if process.pid)

    def raise_xid(self, index: int, xid: int) -> None:
        """Let the driver tell all who have registered for events of a device of this error."""
        device = self.devices[index]
        device.xids[device.xid_count % MAX_XIDS] = xid
        device.xid_count += 1
