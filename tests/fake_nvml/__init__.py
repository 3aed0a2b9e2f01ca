"""Builds and steers the fake NVML, a real shared library that the unmodified `pynvml` loads.

`build` compiles it; a `FakeNvml` owns the state that its library answers from. Setting an attribute of
`fake.devices[n]` or `fake.header` takes effect at the next NVML call of any process that has loaded it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

GIB = 1024**3
MAX_DEVICES = 16
MAX_PROCESSES = 32


class FakeProcess(ctypes.Structure):
    """A process on a device; pid 0 is a free slot."""

    _fields_ = (("pid", ctypes.c_uint32), ("hidden", ctypes.c_uint32), ("bytes", ctypes.c_uint64))


class FakeDevice(ctypes.Structure):
    """A device and its faults; errors are NVML's codes, 0 for none."""

    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("total", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64),
        ("foreign", ctypes.c_uint64),
        ("handle_error", ctypes.c_int32),
        ("identity_error", ctypes.c_int32),
        ("memory_error", ctypes.c_int32),
        ("memory_v2_error", ctypes.c_int32),
        ("process_error", ctypes.c_int32),
        ("compute_mode", ctypes.c_uint32),
        ("mig_mode", ctypes.c_uint32),
        ("slow_ms", ctypes.c_uint32),
        ("hang", ctypes.c_uint32),
        ("bytes_unknown", ctypes.c_uint32),
        ("crash", ctypes.c_uint32),
        ("mig_parent", ctypes.c_int32),
        ("processes", FakeProcess * MAX_PROCESSES),
    )


class FakeState(ctypes.Structure):
    """All of the shared file."""

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
    """Compile the fake as `folder`/libnvidia-ml.so.1 with gcc; returns `folder`, for LD_LIBRARY_PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("fake_nvml.c")
    library = folder / "libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{library.name}"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True)
    return folder


class FakeNvml:
    """The state of a fake driver, kept in `path`; without devices until `add` is called."""

    def __init__(self, path: Path, library_folder: Path, driver: str = "550.54.14") -> None:
        self.path = path
        self._library_folder = library_folder
        path.write_bytes(b"\0" * ctypes.sizeof(FakeState))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.header = FakeState.from_buffer(self._map)
        self.header.state_size = ctypes.sizeof(FakeState)
        self.header.driver = driver.encode()

    @property
    def devices(self) -> ctypes.Array[FakeDevice]:
        """The devices, MIG instances among them, in the order they were added; only the first are in use."""
        return self.header.devices

    @property
    def environ(self) -> dict[str, str]:
        """This process's environment, in which a child finds the fake instead of a real driver."""
        return os.environ | {"LD_LIBRARY_PATH": str(self._library_folder), "FAKE_NVML_STATE": str(self.path)}

    def add(self, uuid: str, name: str = "Fake GPU", total_gib: int = 80, mig_parent: int = -1) -> FakeDevice:
        """Add a device, or an instance of the device number `mig_parent`; 1/100 of its memory is the driver's own."""
        device: FakeDevice = self.devices[self.header.device_count]
        device.uuid, device.name, device.mig_parent = uuid.encode(), name.encode(), mig_parent
        device.total, device.reserved = total_gib * GIB, total_gib * GIB // 100
        self.header.device_count += 1
        return device

    def allocate(self, index: int, pid: int, size_bytes: int, *, hidden: bool = False) -> None:
        """Let `pid` take so much more of a device; a `hidden` process isn't listed, though its memory is in use.

        Raises:
            MemoryError: the device hasn't that much left.
        """
        device = self.devices[index]
        in_use = device.reserved + device.foreign + sum(process.bytes for process in device.processes if process.pid)
        if in_use + size_bytes > device.total:
            raise MemoryError(f"device {index} has {device.total - in_use} bytes left, not {size_bytes}")
        slot = next((process for process in device.processes if process.pid == pid), None)
        if slot is None:
            slot = next(process for process in device.processes if process.pid == 0)
            slot.bytes = 0
        slot.bytes += size_bytes
        slot.hidden = int(hidden)
        slot.pid = pid

    def release(self, index: int, pid: int) -> None:
        """Take everything of `pid` off a device."""
        for process in self.devices[index].processes:
            if process.pid == pid:
                process.pid = process.bytes = 0
