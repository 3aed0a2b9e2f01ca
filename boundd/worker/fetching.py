"""`python -m boundd.worker.fetching`: fetches one model or scorer into the Hugging Face cache, in a process of its own.

A process can be ended whatever a library waits for. The request is a JSON object on standard input; the last line of
standard output is one too: `{"folder": …, "renamed_to": …}`, or `{"kind": …, "message": …, "subject": …}`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from boundd.worker import hub
from boundd.worker.errors import HubUnavailableError, ModelUnavailableError, WorkerError, printable

TRIES = 3
"""How often the hub is asked before it counts as unavailable."""
PAUSE_S = 1.0
DOWNLOADING = "downloading"
"""The state that is printed once the hub has answered."""


def fetch(what: str, source: str, pipeline_class: str) -> dict[str, str]:
    """Fetch a model or scorer; returns its `folder`, and its new name as `renamed_to` ("" if it has none).

    Raises:
        WorkerError: it does not exist, may not be read, or can't be fetched now.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    host = hub.host_of(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        raise hub.offline(what, source)
    renamed = _asked(constants.ENDPOINT, what, source, build_hf_headers(), float(constants.HF_HUB_ETAG_TIMEOUT))
    print(json.dumps({"state": DOWNLOADING}), flush=True)
    try:
        folder = _model(source, pipeline_class) if what == "model" else _scorer(source)
    except Exception as error:
        raise _with_new_name(hub.failure_of(error, what, source, host), source, renamed) from error
    return {"folder": folder, "renamed_to": renamed}


def _asked(endpoint: str, what: str, source: str, headers: dict[str, str], timeout_s: float) -> str:
    """The new id of a renamed repository, else "". The new id is asked for too, because it may not exist."""
    renamed = _persistently(endpoint, what, source, headers, timeout_s)
    if renamed:
        try:
            further = _persistently(endpoint, what, renamed, headers, timeout_s)
        except WorkerError as error:
            raise _with_new_name(error, source, renamed) from error
        if further:
            raise ModelUnavailableError(_moved(source, further))
    return renamed


def _persistently(endpoint: str, what: str, source: str, headers: dict[str, str], timeout_s: float) -> str:
    for tried in range(1, TRIES + 1):
        try:
            return hub.ask(endpoint, what, source, headers, timeout_s)
        except HubUnavailableError:
            if tried == TRIES:
                raise
            time.sleep(PAUSE_S * tried)
    raise AssertionError("the last try returns or raises")


def _with_new_name(error: WorkerError, source: str, renamed: str) -> WorkerError:
    return type(error)(f"{_moved(source, renamed)}. {error}", error.subject) if renamed else error


def _moved(source: str, renamed: str) -> str:
    return f'the hub says that {source!r} was renamed to {renamed!r}: set source = "{renamed}" in the config'


def _model(source: str, pipeline_class: str) -> str:
    import diffusers

    loader = getattr(diffusers, pipeline_class or "DiffusionPipeline")
    left_out: dict[str, Any] = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    return str(loader.download(source, use_safetensors=True, **left_out))


def _scorer(source: str) -> str:
    from huggingface_hub import HfApi, snapshot_download

    names = HfApi().list_repo_files(source)
    safe = any(name.endswith(".safetensors") and "/" not in name for name in names)
    weights = ["*.safetensors", "*.safetensors.index*.json"] if safe else ["pytorch_model*.bin", "*.index.json"]
    small = ["*.json", "*.txt", "*.model"]
    return str(snapshot_download(source, allow_patterns=[*small, *weights], ignore_patterns=["*/*"]))


def main() -> int:
    """Handle the request on standard input."""
    request = json.loads(sys.stdin.readline())
    try:
        answer = fetch(request["what"], request["source"], request["pipeline_class"])
    except WorkerError as error:
        answer = {"kind": error.kind, "message": printable(str(error)), "subject": error.subject}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
