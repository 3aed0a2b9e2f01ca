"""Digests of a model's files: the same for the same content, another one for another model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.protocol import file_digests
from boundd.protocol.file_digests import content_of, file_digest, text_digest

TENSORS = {"a": 300_000, "b": 7, "c": 1_200_000, "d": 60_000}
"""Sizes in bytes."""


def safetensors(path: Path, fill: dict[str, bytes]) -> None:
    """A file in the format of safetensors, each tensor filled with a byte of its own."""
    header, data = {}, b""
    for name, size in TENSORS.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [len(data), len(data) + size]}
        data += fill.get(name, b"\1") * size
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def test_small_files_are_read_to_the_end(tmp_path: Path) -> None:
    """Any changed byte is seen, and where the file lies is not."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"x" * 100_000)
    second.write_bytes(b"x" * 100_000)
    assert file_digest(first) == file_digest(second)
    second.write_bytes(b"x" * 50_000 + b"y" + b"x" * 49_999)
    assert file_digest(first) != file_digest(second)


@pytest.mark.parametrize("changed", TENSORS)
def test_another_tensor_in_a_large_file_is_seen(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them, down to the smallest. Seen to fail with `_ranges` that reads blocks at fixed distances only, which
    miss a small tensor between two of them."""
    monkeypatch.setattr(file_digests, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(file_digests, "HEAD_BYTES", 512)
    monkeypatch.setattr(file_digests, "STRIDE_BYTES", 200_000)
    monkeypatch.setattr(file_digests, "BLOCK_BYTES", 64)
    safetensors(tmp_path / "before", {})
    safetensors(tmp_path / "after", {changed: b"\2"})
    assert file_digest(tmp_path / "before") != file_digest(tmp_path / "after")


def test_a_large_file_is_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of 10 GiB is under 1%."""
    file = tmp_path / "large"
    with file.open("wb") as sparse:
        sparse.truncate(10 << 30)
    with file.open("rb") as descriptor:
        read_bytes = sum(length for _, length in file_digests._ranges(descriptor.fileno(), 10 << 30))
    assert read_bytes < (10 << 30) // 100
    assert file_digest(file)


@given(head=st.binary(max_size=64))
def test_whatever_a_file_begins_with(head: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A large file that is none of ours has a digest all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_digests, "WHOLE_BYTES", 100)
        patch.setattr(file_digests, "HEAD_BYTES", 100)
        file = tmp_path_factory.mktemp("any") / "file"
        file.write_bytes(head + bytes(1000))
        assert len(file_digest(file)) == file_digests.DIGEST_CHARACTERS


def test_a_folder_by_its_files(tmp_path: Path) -> None:
    """Paths are those within the folder."""
    (tmp_path / "unet").mkdir()
    files = [tmp_path / "unet" / "config.json", tmp_path / "model_index.json"]
    for file in files:
        file.write_text("{}")
    found = content_of(tmp_path, files)
    assert list(found) == ["model_index.json", "unet/config.json"]
    assert found["model_index.json"] == found["unet/config.json"] != text_digest("{}")
