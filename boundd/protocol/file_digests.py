"""What is in a model's files, as a few characters: so that a result can say it, and anybody see that it has changed.

Weights are many GiB, too many to be read again whenever somebody asks. Of a large file a digest covers its size, the
head that lists its tensors, and of every tensor a block in each few MiB and its last: training, merging and converting
change every tensor that they touch nearly everywhere. A few changed bytes in the middle of a large file may stay
unseen. Small files are read to the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

WHOLE_BYTES: Final = 64 << 20
"""Files up to this size are read to the end."""
BLOCK_BYTES: Final = 4 << 10
STRIDE_BYTES: Final = 4 << 20
"""One block is read in each of these."""
HEAD_BYTES: Final = 1 << 20
"""Read of a large file that is no safetensors file, at both ends."""
DIGEST_CHARACTERS: Final = 16
_LARGEST_HEADER_BYTES: Final = 100_000_000  # that of the safetensors format


def file_digest(path: Path) -> str:
    """The digest of a file's content, or of what of it is read.

    Raises:
        OSError: when it can't be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        digest.update(size_bytes.to_bytes(8, "little"))
        for start, length in _ranges(file.fileno(), size_bytes):
            digest.update(os.pread(file.fileno(), length, start))
    return digest.hexdigest()[:DIGEST_CHARACTERS]


def content_of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """The digest of each of a folder's files, by its path within the folder.

    Raises:
        OSError: when one can't be read.
    """
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(files)}


def text_digest(text: str) -> str:
    """The digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]


def _ranges(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """What is read of a file: starts and lengths, none longer than `STRIDE_BYTES`."""
    if size_bytes <= WHOLE_BYTES:
        yield from _cut(0, size_bytes)
        return
    tensors = _tensors(descriptor, size_bytes)
    head_bytes = min(tensors, default=(HEAD_BYTES, 0))[0]
    yield from _cut(0, head_bytes)
    for start, end in tensors or [(0, size_bytes)]:
        for block in range(start, end, STRIDE_BYTES):
            yield block, min(BLOCK_BYTES, end - block)
        yield max(start, end - BLOCK_BYTES), min(BLOCK_BYTES, end - start)
    if not tensors:
        yield from _cut(size_bytes - HEAD_BYTES, size_bytes)


def _cut(start: int, end: int) -> Iterator[tuple[int, int]]:
    for block in range(start, end, STRIDE_BYTES):
        yield block, min(STRIDE_BYTES, end - block)


def _tensors(descriptor: int, size_bytes: int) -> list[tuple[int, int]]:
    """Where each tensor of a safetensors file lies; nothing of another file."""
    header_bytes = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if header_bytes > min(size_bytes - 8, _LARGEST_HEADER_BYTES):
        return []
    try:
        header: Mapping[str, Mapping[str, list[int]]] = json.loads(os.pread(descriptor, header_bytes, 8))
        offsets = [tuple(each["data_offsets"]) for name, each in header.items() if name != "__metadata__"]
        return sorted((8 + header_bytes + start, 8 + header_bytes + end) for start, end in offsets if start < end)
    except (ValueError, LookupError, TypeError, AttributeError):
        return []
