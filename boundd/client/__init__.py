"""A client of a running daemon, for scripts in Python.

    from boundd.client import Client

    client = Client()                       # the daemon that `boundctl` would find
    client.retry(selector="oom", batch_size=2)
    client.wait("model=SDXL")
    for cell in client.cells("model=SDXL"):
        print(cell["label"], cell["max_speedup_within_tolerance"])

Rules: the standard library alone, so that `boundctl`, which is made of it, answers at once. Answers are what the JSON
says, typed by `boundd.api.answers`.
"""

from boundd.client.client import Client
from boundd.client.errors import (
    ClientError,
    DamagedAnswerError,
    LostAnswerError,
    NoDaemonError,
    NotFoundError,
    RefusedError,
)

__all__ = [
    "Client",
    "ClientError",
    "DamagedAnswerError",
    "LostAnswerError",
    "NoDaemonError",
    "NotFoundError",
    "RefusedError",
]
