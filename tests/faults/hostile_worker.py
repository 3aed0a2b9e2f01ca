"""A worker of the kind that its first argument names. What each must come to is in test_hostile_workers.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

MIB = 1024**2
RESULT = '{"type": "result", "max_speedup": 2.0, "max_speedup_within_tolerance": null, "isolation": "exclusive"}\n'
POINT = {"type": "point", "parameters": {"n": 1}, "speedup": 2.0, "score_loss": None, "isolation": "exclusive"}


def results(text: str) -> None:
    """Append to the results file."""
    with open(os.environ["BOUNDD_RESULTS"], "a") as file:  # noqa: PTH123
        file.write(text)


def hang() -> None:
    """Until it is killed."""
    while True:
        time.sleep(60)


def leave_behind(then: str) -> None:
    """Double-fork a process with a session of its own that is deaf to TERM, and wait until it is there."""
    worker = os.getpid()
    ready, there = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork():
            os._exit(0)
        os.write(there, b"x")
        if then == "closes":
            os.closerange(0, 4096)
        if then == "writes":
            while True:
                time.sleep(0.05)
                if not os.path.exists(f"/proc/{worker}"):  # noqa: PTH110
                    results(RESULT)
        hang()
    os.read(ready, 1)


def good() -> None:
    """What a worker does."""
    for n in range(5):
        results(json.dumps({**POINT, "parameters": {"n": n}}) + "\n")
        time.sleep(0.4)
    results(RESULT)


def ignores_term() -> None:
    """Deaf to every signal that can be."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    hang()


def double_forks() -> None:
    """Ends well, and leaves somebody behind."""
    leave_behind("hangs")
    results(RESULT)


def closes_descriptors() -> None:
    """The lock's too, and so does whom it leaves behind."""
    leave_behind("closes")
    results(RESULT)
    os.closerange(0, 4096)


def gigabytes() -> None:
    """Of output, in lines, on both streams."""
    lines = (b"0123456789" * 10 + b"\n") * 10_000
    for _ in range(1024 * MIB // len(lines)):
        os.write(1, lines)
        os.write(2, b"x\n")
    results(RESULT)


def endless_line() -> None:
    """Until it is killed, rather slowly after the first 100 MiB."""
    for n in range(10**9):
        os.write(1, b"x" * MIB)
        if n > 100:
            time.sleep(0.05)


def broken_results(variant: str) -> None:
    """One of many ways."""
    path = os.environ["BOUNDD_RESULTS"]
    match variant:
        case "sparse":
            results("")
            os.truncate(path, 1024 * MIB)
        case "malformed":
            results('{"type": "result", "max_speedup": "fast"}\n' + RESULT)
        case "nan":
            results(RESULT.replace("2.0", "NaN"))
        case "deep":
            results("[" * 500_000 + "\n" + '{"a":' * 100_000 + "\n")
        case "points":
            results("".join(json.dumps({**POINT, "parameters": {"n": n}}) + "\n" for n in range(10**6)))
        case "pipe":
            os.mkfifo(path)
        case "link":
            os.symlink("/etc/passwd", path)  # noqa: PTH211
        case "wide":
            results('{"type": "result", "x": "' + "y" * 50 * MIB + '"}\n')


def forks_without_end() -> None:
    """In a cgroup with a limit of its own, which the test made."""
    with open(os.environ["HOSTILE_PIDS"] + "/cgroup.procs", "w") as file:  # noqa: PTH123
        file.write("0")
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.05)


def stops_itself() -> None:
    """TERM waits for as long as it does."""
    os.kill(os.getpid(), signal.SIGSTOP)
    hang()


def fills_the_disk() -> None:
    """A small one, which the test made, and no other."""
    disk = os.statvfs(os.environ["HOSTILE_DISK"])
    assert disk.f_blocks * disk.f_frsize <= 64 * MIB, "the small disk is gone"
    with open(os.environ["HOSTILE_DISK"] + f"/{os.getpid()}", "wb", buffering=0) as file:  # noqa: PTH123
        while file.write(b"x" * MIB):
            pass
    raise OSError("it took everything")


def writes_after_its_end() -> None:
    """Not itself, that is, but whom it leaves behind: a result that it never had."""
    leave_behind("writes")


KINDS = {
    "good": good,
    "hangs": hang,
    "ignores_term": ignores_term,
    "double_forks": double_forks,
    "closes_descriptors": closes_descriptors,
    "gigabytes": gigabytes,
    "endless_line": endless_line,
    "no_result": lambda: None,
    "forks_without_end": forks_without_end,
    "stops_itself": stops_itself,
    "fills_the_disk": fills_the_disk,
    "writes_after_its_end": writes_after_its_end,
}

if __name__ == "__main__":
    kind, variant, _ = sys.argv[1].split(":")
    if kind == "broken_results":
        broken_results(variant)
    else:
        KINDS[kind]()
