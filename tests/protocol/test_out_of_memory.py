"""Memory that ran out is told by one rule, in the worker and from its output, whoever words or wraps it.

Seen to fail: with `_PREFIX` matching nothing, what torchrun wraps is not told; without `_DIRECT_CAUSE`, what a script
raises from it isn't; with `_mentions_handling` always false, handled ones are; with `_AT_EXIT` empty, an exception of
the interpreter's end counts as the last.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boundd.protocol.out_of_memory import find_out_of_memory, last_exception, out_of_memory_text
from boundd.service.log_reading import kept_lines
from boundd.worker.errors import shortage_of

WORDS = [
    "CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 31.74 GiB of which 2.76 GiB is",
    "HIP out of memory. Tried to allocate 2.00 GiB.",
    "XPU out of memory. Tried to allocate 2.00 GiB.",
    "MPS backend out of memory (MPS allocated: 17.95 GB, max allowed: 18.13 GB).",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "HIP error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "Triton Error [HIP]:  Code: 2, Messsage: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation: out of memory",
    "parallel_for failed: cudaErrorMemoryAllocation: out of memory",
    "hipErrorOutOfMemory: out of memory",
    "cudaMalloc failed: out of memory",
    "cuda runtime error (2) : out of memory at THCStorage.cu:58",
    "Out of memory error on GPU 0. Cannot allocate 2.000000GB memory on GPU 0, 10.0GB memory has been allocated",
    "NCCL Error 1: unhandled cuda error, Cuda failure 'out of memory'",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes.",
    "RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes.",
    "RESOURCE_EXHAUSTED: Failed to allocate request for 4.00GiB (4294967296B) on device ordinal 0",
    "OOM when allocating tensor with shape[8,4,64,64] and type half on /job:localhost/device:GPU:0",
    "Out of memory allocating 4,294,967,296 bytes (allocated so far: 0 bytes).",
    "backend='inductor' raised: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "No executable batch size found, reached zero.",
    "Level-Zero error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    "[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 4294967296",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8",
]
NOT_THESE = [
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 147456, Hardware limit: 101376",
    "java.lang.OutOfMemoryError: Java heap space",
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
    "kernel: Out of memory: Killed process 4711 (python)",
    "sqlite3.OperationalError: out of memory",
    "huggingface_hub.errors.HfHubHTTPError: 429 RESOURCE_EXHAUSTED: quota exceeded",
    "OSError: [Errno 12] Cannot allocate memory",
    "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed.",
    "ValueError: the log says CUDA out of memory. Tried to allocate 4.00 GiB.",
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
]
TYPES = ("RuntimeError", "torch.OutOfMemoryError", "torch.AcceleratorError", "jaxlib.xla_extension.XlaRuntimeError")


def traceback_of(last: str, prefix: str = "") -> str:
    """What Python prints of an exception."""
    lines = ["Traceback (most recent call last):", '  File "search.py", line 12, in <module>', "    main()", last]
    return "".join(f"{prefix}{line}\n" for line in lines)


@pytest.mark.parametrize("words", WORDS)
def test_worker_and_daemon_know_the_same_words(words: str) -> None:
    """As an exception's message, in its traceback, and as the last line of a program that isn't Python."""
    assert find_out_of_memory(RuntimeError(words)) is not None
    assert shortage_of(RuntimeError(words)) is not None
    assert out_of_memory_text(traceback_of(f"RuntimeError: {words}")).startswith("RuntimeError: ")
    assert out_of_memory_text(f"loading\n{words}\n").endswith(words[4:])


@pytest.mark.parametrize("line", NOT_THESE)
def test_what_only_looks_like_it(line: str) -> None:
    """The host's memory, a kernel's shared memory, a server's quota, and who quotes such words."""
    assert out_of_memory_text(traceback_of(line)) == out_of_memory_text(line) == ""
    if not line.startswith(("java", "Value", "kernel")):
        assert find_out_of_memory(RuntimeError(line.partition(": ")[2])) is None
    assert find_out_of_memory(ValueError(WORDS[0])) is None


TORCHRUN = """\
E1201 03:00:00.000000 123 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 1) local_rank: 0
Traceback (most recent call last):
  File "/usr/bin/torchrun", line 7, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\x20
============================================================
search.py FAILED
Root Cause (first observed failure):
[0]:
  exitcode  : 1 (pid: 12)
  error_file: <N/A>
"""
ACCELERATE = "subprocess.CalledProcessError: Command '['python', 'search.py']' returned non-zero exit status 1.\n"
SHUTDOWN = "Exception ignored in: <function Pool.__del__ at 0x7f>\n" + traceback_of(
    "TypeError: 'NoneType' object is not callable"
)
WRAPPINGS = {
    "torchrun": lambda last: traceback_of(last, "[rank0]: ") + TORCHRUN,
    "torchrun --tee": lambda last: traceback_of(last, "[default0]:[rank0]: ") + TORCHRUN,
    "accelerate": lambda last: traceback_of(last) + traceback_of(ACCELERATE.strip()),
    "mpirun": lambda last: traceback_of(last, "[1,0]<stderr>: "),
    "srun": lambda last: traceback_of(last, "0: "),
    "ray": lambda last: traceback_of(last, "(Worker pid=12, ip=10.0.0.1) "),
    "coloured": lambda last: traceback_of(f"\x1b[1;35m{last.partition(':')[0]}\x1b[0m:{last.partition(':')[2]}"),
    "progress bar": lambda last: "\r 10%|#\r 20%|##\r" + traceback_of(last),
    "raised from": lambda last: (
        traceback_of(last)
        + "\nThe above exception was the direct cause of the following exception:\n\n"
        + traceback_of("search.SearchFailed: at point 3")
    ),
    "group": lambda last: (
        "  + Exception Group Traceback (most recent call last):\n  | ExceptionGroup: 1 failed (1 sub-exception)\n"
        "  +-+---------------- 1 ----------------\n"
        + traceback_of(last, "    | ")
        + "    +------------------------------------\n"
    ),
    "at exit": lambda last: traceback_of(last) + SHUTDOWN,
    "advice": lambda last: traceback_of(last) + "Please try again with a smaller batch size.\n",
    "conda run": lambda last: (
        traceback_of(last) + "ERROR conda.cli.main_run:execute(49): `conda run x` failed. (See above for error)\n"
    ),
    "spam": lambda last: traceback_of(last) + "cleaning up\n" * 50,
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("words", [WORDS[0], WORDS[7], WORDS[20]])
def test_whoever_wraps_it(wrapping: str, words: str) -> None:
    """Launchers, colours, groups, a chain of causes, an interpreter that ends."""
    assert words in out_of_memory_text(WRAPPINGS[wrapping](f"RuntimeError: {words}"))


NCCL = """\
torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:317, unhandled cuda error, NCCL version 2.21.5
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Cuda failure 2 'out of memory'
"""


@pytest.mark.parametrize("after", ["", TORCHRUN, "cleaning up\n" * 50])
def test_a_later_line_of_the_message_says_it(after: str) -> None:
    """NCCL's and Paddle's; but not behind an exception that only quotes, and not where it goes on after that."""
    paddle = "ResourceExhaustedError: \n\nOut of memory error on GPU 0. Cannot allocate 2.0GB memory on GPU 0\n"
    if not after.startswith("clean"):
        assert out_of_memory_text(traceback_of(NCCL.strip()) + after) == "Cuda failure 2 'out of memory'"
        assert "Out of memory error" in out_of_memory_text(traceback_of(paddle) + after)
    assert out_of_memory_text(traceback_of("ValueError: the log:\n" + WORDS[0]) + after) == ""
    assert out_of_memory_text(traceback_of(NCCL.strip()) + "going on with one rank\n" + after) == ""
    assert out_of_memory_text(traceback_of(NCCL.strip()) + traceback_of("KeyError: 'x'") + after) == ""
    assert (
        out_of_memory_text(traceback_of("RuntimeError: CUDA error: an illegal memory access was encountered") + after)
        == ""
    )


def test_a_program_that_aborts_says_why_before() -> None:
    """A shell tells of the signal; that says nothing of its own."""
    assert (
        out_of_memory_text("cudaMalloc failed: out of memory\nAborted (core dumped)\n")
        == "cudaMalloc failed: out of memory"
    )
    assert (
        out_of_memory_text("cudaMalloc failed: out of memory\nfailed to read the prompts\nAborted (core dumped)\n")
        == ""
    )


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapping_makes_nothing_of_another_failure(wrapping: str) -> None:
    """And the last exception is that one."""
    text = WRAPPINGS[wrapping]("ValueError: unknown scheduler")
    assert out_of_memory_text(text) == ""
    assert "unknown scheduler" in last_exception(text) or wrapping == "raised from"


HANDLED = [
    lambda said: f"WARNING {said} - going on with a smaller tile\nno prompts left in the file\n",
    lambda said: (
        f"WARNING {said} - going on\n" + traceback_of("\x1b[1;35mValueError\x1b[0m: \x1b[35munknown scheduler\x1b[0m")
    ),
    lambda said: f"RuntimeError: {said}\nretrying with tile 3\nno prompts left in the file\n",
    lambda said: traceback_of(f"RuntimeError: {said}") + "ran out at batch 4, falling back to 2\nno prompts left\n",
    lambda said: traceback_of(f"RuntimeError: {said}") + "ERROR: no prompts left in the file\n",
    lambda said: traceback_of(f"RuntimeError: {said}") + "search.py: error: argument --steps: invalid int value: 'x'\n",
    lambda said: (
        traceback_of(f"RuntimeError: {said}")
        + "\nDuring handling of the above exception, another exception occurred:\n\n"
        + traceback_of("KeyError: 'steps'")
    ),
    lambda said: traceback_of(f"RuntimeError: {said}") + "x\n" * 9000 + traceback_of("queue.Empty"),
    lambda said: f"{said}, skipping this image\nno prompts left\n",
    lambda said: f"{said}\nno prompts left in the file\n",
    lambda said: f"UserWarning: {said}, trying a smaller workspace\nusage: search.py [-h]\n",
]


@pytest.mark.parametrize("words", [WORDS[0], WORDS[4], WORDS[20]])
@pytest.mark.parametrize("output", HANDLED)
def test_a_handled_one_before_another_failure_is_none(output: object, words: str) -> None:
    """Whether it was told as a warning, with its traceback, or in passing."""
    assert out_of_memory_text(output(words)) == ""  # type: ignore[operator]


def test_causes_and_contexts() -> None:
    """What an exception was raised `from` is why; what was being handled when it was raised isn't."""
    short = RuntimeError(WORDS[0])
    broken = KeyError("steps")
    broken.__cause__ = short
    assert find_out_of_memory(broken) is short
    assert shortage_of(broken) is not None
    broken.__cause__, broken.__context__ = None, short
    assert find_out_of_memory(broken) is None
    assert find_out_of_memory(ExceptionGroup("1 failed", [short])) is short
    assert find_out_of_memory(ExceptionGroup("2 failed", [short, KeyError()])) is None


quiet = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
noise = st.lists(
    st.sampled_from(
        ["step 3/50", "loss 0.5", "Loading pipeline components...: 100%", "\r 10%|#", "", "seed 7", "speedup: 1.2"]
    ),
    max_size=6,
).map(lambda lines: "".join(f"{line}\n" for line in lines))


@settings(max_examples=600, **quiet)
@given(
    noise, st.sampled_from(WORDS), st.sampled_from(TYPES), st.sampled_from(sorted(WRAPPINGS)), noise,
    st.one_of(st.none(), st.sampled_from(HANDLED)),
)  # fmt: skip
def test_generated_outputs(before: str, words: str, kind: str, wrapping: str, after: str, handled: object) -> None:
    """Every wording in every wrapping, in the middle of an output; and every wording that was handled."""
    text = before + (WRAPPINGS[wrapping](f"{kind}: {words}") + after if handled is None else handled(words))  # type: ignore[operator]
    assert (words in out_of_memory_text(text)) is (handled is None), text


@pytest.mark.parametrize("line", [*WORDS, *(f"{kind}: {words}" for kind in TYPES for words in WORDS)])
def test_a_cut_log_keeps_each_of_them(line: str) -> None:
    """The bytes that a shim looks for are in every line that the rule would find."""
    needles = [needle for kind in kept_lines(from_stdout=False) for needle in kind["needles"]]
    assert any(needle in line for needle in needles)


def test_it_imports_the_standard_library_alone() -> None:
    """A worker's interpreter has nothing else to offer for sure."""
    program = (
        "import sys; import boundd.protocol.out_of_memory; "
        "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-S", "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert set(ran.stdout.split()) <= {"boundd", "__main__"}
