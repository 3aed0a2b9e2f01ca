"""Documents name files that exist. Seen to fail: docs/memory.md named a test that had moved to another folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(CHECKOUT.glob("docs/*.md")), *(CHECKOUT / f"{name}.md" for name in ("README", "ARCHITECTURE"))]
_FILE = re.compile(r"(?<![\w./-])(?:boundd|tests|tools|benchmarks|examples)/[\w/-]+\.(?:py|txt)\b")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    """Modules, tests and recorded results, each by its path from the root."""
    assert [name for name in _FILE.findall(document.read_text()) if not (CHECKOUT / name).is_file()] == []
