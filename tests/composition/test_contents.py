"""Whether the files that results were measured with are what they were, also on a disk that is slow."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from boundd.composition import contents as contents_module
from boundd.composition.contents import Contents
from boundd.protocol.file_digests import content_of, file_digest

PATIENT_S = 30.0


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder of two files, and their digests."""
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    files = [folder / "model_index.json", folder / "unet" / "weights.safetensors"]
    for file in files:
        file.write_bytes(b"as they were")
    return folder, content_of(folder, files)


def test_what_is_as_it_was_is_unchanged(model: tuple[Path, dict[str, str]]) -> None:
    """Also when it was copied again, and when the folder is gone, of which nobody knows."""
    folder, digests = model
    contents = Contents(PATIENT_S, looked_at_s=0)
    assert not contents.is_changed(str(folder), digests)
    (folder / "model_index.json").write_bytes(b"as they were")
    assert not contents.is_changed(str(folder), digests)
    shutil.rmtree(folder)
    assert not Contents(PATIENT_S).is_changed(str(folder), digests)
    assert not Contents(PATIENT_S).is_changed("/no/such\0folder", digests)


@pytest.mark.parametrize("way", ["written", "gone", "another file with the old times", "another folder"])
def test_what_was_changed_is_seen(way: str, model: tuple[Path, dict[str, str]]) -> None:
    """Whatever the new file's times say; seen to fail with only the time of writing looked at."""
    folder, digests = model
    contents = Contents(PATIENT_S, looked_at_s=0)
    assert not contents.is_changed(str(folder), digests)
    weights = folder / "unet" / "weights.safetensors"
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    if way == "written":
        weights.write_bytes(b"as they are")
    elif way == "gone":
        weights.unlink()
    elif way == "another file with the old times":
        weights.write_bytes(b"AS THEY WERE")
        os.utime(weights, ns=times)
    else:
        shutil.copytree(folder, folder.parent / "other")
        (folder.parent / "other" / "unet" / "weights.safetensors").write_bytes(b"AS THEY WERE")
        folder.rename(folder.parent / "old")
        (folder.parent / "other").rename(folder)
    deadline_s = time.monotonic() + PATIENT_S
    while not contents.is_changed(str(folder), digests):  # found by the thread, a moment later
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_disk_that_does_not_answer_holds_nobody_up(
    model: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment once; what it says when it answers again is taken then."""
    folder, digests = model
    answers = threading.Event()

    def slow_digest(path: Path) -> str:
        answers.wait(PATIENT_S)
        return file_digest(path)

    monkeypatch.setattr(contents_module, "file_digest", slow_digest)
    (folder / "model_index.json").write_bytes(b"as they are")
    contents = Contents(patience_s=0.2)
    started_s = time.monotonic()
    for copy in range(50):
        assert not contents.is_changed(str(folder), digests | {f"copy {copy}": "0"})
    assert time.monotonic() - started_s < 5
    answers.set()
    deadline_s = time.monotonic() + PATIENT_S
    while not contents.is_changed(str(folder), digests | {"copy 0": "0"}):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
