"""Names as people write them: the same in any case, and a wrong one is answered with what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class UnknownNameError(ValueError):
    """A name that is not known; `nearest` holds the known ones it may have meant, best first."""

    def __init__(self, kind: str, name: str, known: Collection[str]) -> None:
        by_folded = {folded(candidate): candidate for candidate in known}
        close = difflib.get_close_matches(folded(name), list(by_folded), n=3, cutoff=0.5)
        self.nearest = tuple(by_folded[match] for match in close)
        hint = f"did you mean {' or '.join(self.nearest)}?" if self.nearest else "known: " + ", ".join(sorted(known))
        super().__init__(f"unknown {kind} {name!r}: {hint}")


def folded(name: str) -> str:
    """The form in which two spellings of a name are equal: lower case, '-' for '_'."""
    return name.casefold().replace("_", "-")
