"""Telling memory that ran out from everything else."""

import pytest
import torch

from boundd.worker.errors import (
    EXIT_CODES,
    BadDataError,
    DeviceFailedError,
    ModelUnavailableError,
    PackageError,
    WorkerError,
    printable,
    shortage_of,
)

CUDA = (
    "CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 31.74 GiB of which 2.76 GiB is free."
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA),
        torch.cuda.OutOfMemoryError(CUDA),
        RuntimeError(CUDA),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
        MemoryError(),
    ],
)
def test_every_form_is_recognised(error: BaseException) -> None:
    """torch's class, its older name, the older RuntimeErrors, the libraries', and Python's own."""
    shortage = shortage_of(error)
    assert shortage is not None
    assert shortage.message
    assert shortage.line("baseline").phase == "baseline"


def test_the_sizes_are_read() -> None:
    """What was asked for and what was free, in bytes."""
    shortage = shortage_of(torch.OutOfMemoryError(CUDA))
    assert shortage is not None
    assert shortage.requested_bytes == 4 << 30
    assert shortage.free_bytes == int(2.76 * (1 << 30))


def test_a_real_shortage_is_recognised() -> None:
    """What torch really raises when the CPU has no such amount, with the size it asked for."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    shortage = shortage_of(caught.value)
    assert shortage is not None
    assert shortage.requested_bytes == 1 << 60


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError(CUDA), OSError("disk full"), KeyError()],
)
def test_other_errors_are_not(error: BaseException) -> None:
    """A shape error is no shortage, and neither is another error that quotes one."""
    assert shortage_of(error) is None


def test_every_kind_has_its_exit_code() -> None:
    """The cell's own kinds map to distinct codes, none of them 0 or click's 2, and not to that of the environment's."""
    own = [EXIT_CODES[kind] for kind in ("other", "out_of_memory", "model_unavailable", "bad_data")]
    assert len(set(own)) == len(own)
    assert not {0, 2} & set(EXIT_CODES.values())
    assert EXIT_CODES["package"] == EXIT_CODES["device_failed"] not in own
    for kind in (WorkerError, ModelUnavailableError, BadDataError, PackageError, DeviceFailedError):
        line = kind("why \udc80").line("load")
        assert line.error in EXIT_CODES
        assert line.message == "why ?"


def test_messages_have_an_end() -> None:
    """A message of megabytes is cut."""
    assert len(printable("x" * 1_000_000)) < 10_000
