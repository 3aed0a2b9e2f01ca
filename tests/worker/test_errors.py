"""Telling memory that ran out from everything else."""

import pytest
import torch

from boundd.worker.errors import (
    ERRORS_BY_KIND,
    EXIT_CODES,
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
    """Whose failure it is can be told by the code, and none is 0 or click's 2; the hub's is the model's to a script."""
    codes = set(EXIT_CODES.values())
    assert codes == {1, 3, 4, 5, 6}
    assert EXIT_CODES["hub_unavailable"] == EXIT_CODES["model_unavailable"] == 4
    assert set(ERRORS_BY_KIND) | {"other", "out_of_memory"} == set(EXIT_CODES)
    for kind in (WorkerError, *ERRORS_BY_KIND.values()):
        line = kind("why \udc80").line("load")
        assert line.error in EXIT_CODES
        assert line.message == "why ?"


def test_messages_have_an_end() -> None:
    """A message of megabytes is cut."""
    assert len(printable("x" * 1_000_000)) < 10_000
