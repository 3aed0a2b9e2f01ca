"""How a device that ran out of memory is told from an output or an exception: one rule for the worker and the daemon.

Rules: the words of the libraries that allocate on devices are known, whoever wraps them; what the host or a kernel's
shared memory ran out of is not the device's. The last failure of an output counts: one that was handled, and that a
failure of another kind followed, is not why a process ended.

Standard library only: whatever reports a failure may import this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from boundd.protocol.script_output import without_terminal_codes

OUT_OF_MEMORY = re.compile(
    # PyTorch on CUDA, ROCm, XPU, MPS, NPU, MLU and the like; CuPy; vLLM and accelerate, which give up after it.
    r"\b(?:CUDA|HIP|XPU|MPS backend|NPU|MLU|MUSA|HPU|GCU|SYCL|GPU|VRAM|[Dd]evice) out of memory"
    r"|(?<!lang\.)(?<!ray\.exceptions\.)\bOutOfMemoryError\b"
    r"|\bout of (?:GPU|device|CUDA|video|VRAM) memory"
    r"|No executable batch size found, reached zero"
    # The runtime's and the driver's own: "CUDA error: out of memory", "CUDA driver error: …", "cudaMalloc failed: …".
    r"|\b(?:CUDA|HIP|ROCm|Cuda|Hip|cuda|hip|XPU|Triton|GPU|NVRTC)\b[^\n]{0,60}?[:\]'\"(] ?['\"]?out of memory"
    r"|\b(?:cuda|cu|hip)[A-Z]\w+\b[^\n]{0,80}\bout of memory"
    r"|\bcudaErrorMemoryAllocation\b|\bhipErrorMemoryAllocation\b|\bhipErrorOutOfMemory\b"
    r"|\b(?:CUDA|HIP|NVRTC|HIPRTC|ZE_RESULT|UR_RESULT|PI|VK|CL|ACL|CU|NCCL)\w*_ERROR_OUT_OF_(?:DEVICE_|GPU_)?MEMORY"
    r"|\b(?:ZE_RESULT|UR_RESULT)_ERROR_OUT_OF_DEVICE_MEMORY"
    # Libraries on top: cuBLAS, cuDNN, cuSPARSE, cuSOLVER, cuFFT, hipBLAS, rocBLAS, MIOpen.
    r"|\b(?:CUBLAS|HIPBLAS|CUSPARSE|HIPSPARSE|CUSOLVER|HIPSOLVER|CUDNN|CUTENSOR|CURAND|ROCBLAS)(?:_STATUS)?_ALLOC_FAILED"
    r"|\bCU(?:FFT|DSS)(?:_STATUS)?_ALLOC_FAILED|\bHIPFFT_ALLOC_FAILED"
    r"|\bCUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED|\b(?:CURAND|HIPRAND)_STATUS_ALLOCATION_FAILED"
    r"|\brocblas_status_memory_error\b|\bmiopenStatusAllocFailed\b"
    # XLA (JAX, TensorFlow). RESOURCE_EXHAUSTED alone is also what a server says of a quota.
    r"|\bRESOURCE_EXHAUSTED: (?:\S+: )*(?:Out of memory|Failed to allocate|Error allocating|Ran out of memory)"
    r"|\bOOM when allocating tensor"
    r"|\bOut of memory (?:while trying to allocate|allocating) [\d,.]+ ?(?:[KMGT]i?B|bytes)"
    r"|\bRan out of memory in memory space (?:hbm|vmem)"
    # ONNX Runtime, TensorRT, ggml, DirectML, Paddle.
    r"|\bOut of memory error on GPU \d"
    r"|\bCUDA (?:failure|error) 2\b|\bFailed to allocate memory for requested buffer of size"
    r"|\bError Code 2: OutOfMemory|\bOutOfMemory \(no further information\)"
    r"|\bunable to allocate (?:CUDA|ROCm|SYCL|Vulkan|Metal)\d* buffer"
    r"|\bnot enough GPU video memory available"
    # The CPU as the device.
    r"|\bDefaultCPUAllocator: (?:can't allocate memory|not enough memory)|^MemoryError\b",
    re.MULTILINE,
)
"""The words of who allocates on a device. "Triton … out of resource: shared memory", the kernel's "Out of memory:
Killed process", Java's OutOfMemoryError and Ray's, which is of the host's memory, are other things."""

_NAMES = frozenset({"OutOfMemoryError", "MemoryError"})
_NOT_OF_ALLOCATORS = frozenset(
    {
        *("ValueError", "TypeError", "LookupError", "KeyError", "IndexError", "AttributeError", "NameError", "OSError"),
        *("ImportError", "ModuleNotFoundError", "FileNotFoundError", "ArithmeticError", "AssertionError"),
        *("SyntaxError", "UnicodeError", "UnicodeDecodeError", "PermissionError", "JSONDecodeError"),
    }
)
"""No library says so that memory ran out: such an exception only quotes one that does."""
WRAPPERS = frozenset(
    {
        *("CalledProcessError", "ChildFailedError", "ProcessExitedException", "ProcessRaisedException"),
        *("RemoteTraceback", "_RemoteTraceback", "RayTaskError", "BrokenProcessPool", "SystemExit"),
        *("ExceptionGroup", "BaseExceptionGroup", "CancelledError", "ChildProcessError"),
    }
)
"""Exceptions that only say that something inside failed: what that said itself stands beside them."""
_WRAPPED = re.compile(
    r"DataLoader worker \(pid\S* [\d, ]+\) exited unexpectedly|returned non-zero exit status|exitcode"
)
_EXCEPTION = re.compile(
    r"terminate called after throwing an instance of '[^']+'"
    r"|(?:[\w.<>]+\.)?\w*(?:Error|Exception|Interrupt|Exit|Group)\b(?:\(\w+\))?(?:\s*$|:)"
    r"|(?:\w+\.)+\w*(?:Timeout|error)(?:\s*$|:)"
)
_TRACEBACK = "Traceback (most recent call last)"
_AT_EXIT = ("Exception ignored in", "Error in atexit", "Error in sys.excepthook")
"""Above tracebacks of what went wrong while a process that had failed was being taken down."""
_ANY_NAME = re.compile(r"[A-Za-z_][\w.<>]*(?::|$)")
"""Below a traceback any class may be an exception's."""
_EXCEPTION_NAME = re.compile(r"([\w.<>]+)(?:\((\w+)\))?")
_PREFIX = re.compile(
    r"^(?:\[(?:rank|default|local_rank|node)?[ _-]?\d+\][:,]? ?"  # torchrun: [rank0]: , [default0]:
    r"|\[\d+,\d+\]<std(?:err|out)>: ?"  # mpirun
    r"|\((?:\w+ )?(?:pid|worker)=?[^)]*\) ?"  # ray
    r"|\d+: (?=\S)"  # srun --label
    r"|[ \t]*(?:[+|] )+(?:[-+]+ ?)*"  # exception groups
    r")+",
    re.MULTILINE,
)
_DIRECT_CAUSE = "The above exception was the direct cause of the following exception:"
_HANDLED = re.compile(
    r"\b(?:retry\w*|retri\w+|try\w* again|again with|going on|go on|goes on|continu\w+|skip\w*|fall\w* back|fallback"
    r"|smaller|lower\w*|reduc\w+|halv\w+|split\w*|slic\w+|til(?:e|es|ed|ing)|offload\w*|instead|recover\w*|handled"
    r"|ignor\w+|caught|switch\w*)\b",
    re.IGNORECASE,
)
_ADVICE = re.compile(r"\b(?:please|consider|should|you|your|try (?!again))\b[^.;\n]*", re.IGNORECASE)
"""What a person is told to do was not done."""
_WARNING = re.compile(r"\b(?:WARN(?:ING)?|INFO|DEBUG|NOTICE|\w*Warning)\b|^\s*[WID]\d{4} ")
_ERROR_LINE = re.compile(
    r"^(?:\S+ ){0,4}\[?(?:ERROR|FATAL|CRITICAL)\b|(?i:^[\w./-]+: (?:fatal )?(?:error|fatal): |^(?:error|fatal)\b)"
)
_CONSEQUENCE = re.compile(
    r"elastic|exit ?code|exit status|returned non-zero|torch\.distributed|launcher|exiting|aborting|shutting down"
    r"|giving up|see above for error|^Aborted(?: \(core dumped\))?$"
    r"|\b(?:run|job|task|process|worker|rank|cell|experiment|script|inference|generation|benchmark"
    r"|measurement) (?:has |was )?(?:failed|died|crashed|aborted|terminated)",
    re.IGNORECASE,
)
"""Lines that say no more than that something before them failed."""
_SAYS_ERROR = re.compile(r"error|fail|fatal|abort", re.IGNORECASE)
_SPAM_LINES = 20
FOLLOWING_LINES = 3
"""So many lines behind a failure tell whether it was handled."""

NEEDLES = ("emory", "MEMORY", "ALLOC", "llocat", "batch size found")
"""One of these is in every line that tells of memory that ran out: few, because gigabytes are searched for them."""
FAILURE_NEEDLES = ("rror", "xception", "Traceback", "Interrupt", "terminate called", "direct cause of")
"""One of these is in nearly every line that tells of another failure."""
LEVEL_NEEDLES = ("ERROR", "FATAL", "CRITICAL", "atal:")


def find_out_of_memory(error: BaseException) -> BaseException | None:
    """The exception that says that a device's memory ran out: `error`, or what it was raised `from`; None for neither.

    One that was being handled when `error` was raised doesn't count: `error` may be anything.
    """
    seen: set[int] = set()
    looked_at: list[BaseException | None] = [error]
    while looked_at:
        one = looked_at.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        names = {parent.__name__ for parent in type(one).__mro__}
        if names & _NAMES or (OUT_OF_MEMORY.search(str(one)) and not names & _NOT_OF_ALLOCATORS):
            return one
        looked_at.append(one.__cause__)
        if isinstance(one, BaseExceptionGroup) and len(one.exceptions) == 1:
            looked_at.append(one.exceptions[0])
    return None


def last_exception(output: str) -> str:
    """The last exception of an output, from its name to the end of its message; empty where there is none.

    One that only says that another process failed is passed over for what that one said.
    """
    text = without_prefixes(output)
    last = _last(text)
    return "" if last is None else _message(text, last)


def out_of_memory_text(output: str) -> str:
    """The words in which an output says that its process ended because a device's memory ran out; empty where not."""
    text = without_prefixes(output)
    last = _last(text)
    if last is None:
        return _plain_out_of_memory_text(text)
    message = _message(text, last)
    if not _is_out_of_memory(message):
        # `raise Broken() from out_of_memory`: its author says that this is why.
        cause = _direct_cause_of(text, last)
        if cause is None or not _is_out_of_memory(_message(text, cause)):
            # NCCL and Paddle say it in a later line of their message.
            return "" if _only_quotes(message) else _plain_out_of_memory_text(_further_lines(text, last))
        message = _message(text, cause)
    behind = [line for line in text[last.end :].splitlines() if line.strip()]
    if any(_mentions_handling(line) and not OUT_OF_MEMORY.search(line) for line in behind[:FOLLOWING_LINES]):
        return ""
    if any(OUT_OF_MEMORY.search(line) and _is_handled(line) for line in behind):
        return ""  # It went on after that, and so after this.
    return "" if any(_is_another_failure(line) for line in behind) else message


def without_prefixes(output: str) -> str:
    """An output without colours, carriage returns, and what launchers put in front of each line of their processes."""
    return _PREFIX.sub("", without_terminal_codes(output))


class _Found(NamedTuple):
    """An exception in an output: where its line begins and ends."""

    start: int
    end: int
    line: str


def _exceptions(text: str) -> Iterator[_Found]:
    """Every exception that says what was wrong, in their order."""
    at, in_traceback, at_exit = 0, False, False
    for line in text.split("\n"):
        if line.startswith(_TRACEBACK) or " Group Traceback " in line:
            in_traceback = True
        elif line.startswith(_AT_EXIT):
            at_exit = True
        elif line[:1].strip():
            is_one = _EXCEPTION.match(line) or (in_traceback and _ANY_NAME.match(line))
            counts = not (in_traceback and at_exit)
            in_traceback = at_exit = False
            if is_one and counts and not _is_wrapper(line):
                yield _Found(at, at + len(line), line.strip())
        at += len(line) + 1


def _last(text: str) -> _Found | None:
    found = None
    for found in _exceptions(text):  # noqa: B007 - the last one is wanted
        pass
    return found


def _is_wrapper(line: str) -> bool:
    name = _EXCEPTION_NAME.match(line)
    if name is None or name[2] or line.startswith("terminate called"):
        return False  # RayTaskError(OutOfMemoryError) says what failed inside.
    return name[1].rpartition(".")[2] in WRAPPERS or bool(_WRAPPED.search(line))


def _message(text: str, found: _Found) -> str:
    if found.line.startswith("terminate called"):
        return text[found.start :].strip()
    return found.line


def _further_lines(text: str, found: _Found) -> str:
    """What stands behind the first line of an exception's message, up to what a launcher says of it."""
    lines = []
    for line in text[found.end :].splitlines():
        if line.startswith(_TRACEBACK) or _CONSEQUENCE.search(line):
            break
        lines.append(line)
    return "\n".join(lines)


def _direct_cause_of(text: str, found: _Found) -> _Found | None:
    before = text[: found.start]
    joint = before.rfind(_DIRECT_CAUSE)
    # Another exception in between means that the sentence is of an older chain.
    if joint < 0 or _last(before[joint + len(_DIRECT_CAUSE) :]) is not None:
        return None
    return _last(before[:joint])


def _is_out_of_memory(message: str) -> bool:
    return not _only_quotes(message) and bool(OUT_OF_MEMORY.search(message))


def _only_quotes(message: str) -> bool:
    """Whether an exception is of a kind that no allocator raises."""
    name = _EXCEPTION_NAME.match(message)
    return name is not None and not name[2] and name[1].rpartition(".")[2] in _NOT_OF_ALLOCATORS


def _plain_out_of_memory_text(text: str) -> str:
    """Of an output without an exception: its last line, or one that is told as an error, if nothing contradicts it."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _CONSEQUENCE.search(line)]
    for place in range(len(lines) - 1, -1, -1):
        line, following = lines[place], lines[place + 1 :]
        if OUT_OF_MEMORY.search(line):
            if _is_handled(line) or any(map(_mentions_handling, following[:FOLLOWING_LINES])):
                return ""
            # A program that says something more before it ends says why it ends; one that goes on and on says nothing.
            is_why = not following or (len(following) > _SPAM_LINES and _SAYS_ERROR.search(line))
            return line if is_why else ""
        if _is_another_failure(line):
            return ""
    return ""


def _is_handled(line: str) -> bool:
    """Whether a line that tells of memory that ran out tells of it in passing."""
    return bool(_WARNING.search(line)) or _mentions_handling(OUT_OF_MEMORY.sub("", line))


def _mentions_handling(line: str) -> bool:
    return bool(_HANDLED.search(_ADVICE.sub("", line))) and not line.startswith(_AT_EXIT)


def _is_another_failure(line: str) -> bool:
    return bool(_ERROR_LINE.search(line)) and not (_CONSEQUENCE.search(line) or OUT_OF_MEMORY.search(line))
