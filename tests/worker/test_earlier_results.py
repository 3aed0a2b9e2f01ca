"""What earlier attempts measured is read back, and only that."""

from __future__ import annotations

from pathlib import Path

from boundd.catalogue.outcomes import Isolation
from boundd.protocol.lines import Point, Progress, encode, name_of
from boundd.worker.earlier_results import read_earlier


def point(speedup: float, instrument: str = "today", **parameters: int) -> Point:
    """A point's line."""
    return Point(
        parameters=parameters,
        speedup=speedup,
        score_loss=None,
        isolation=Isolation.EXCLUSIVE,
        extra={"instrument": instrument},
    )


def test_the_last_line_of_a_point_counts(tmp_path: Path) -> None:
    """Over several attempts; what an earlier one cut short, or another instrument measured, is left out."""
    first, second, torn = (tmp_path / name for name in ("1", "2", "3"))
    first.write_text(
        "\n".join(
            [
                encode(Progress(done=0, total=3)),
                encode(point(2.0, a=1)),
                encode(point(2.1, a=1)),
                encode(point(3.0, instrument="another torch", a=2)),
                "not a line",
                encode(point(1.5, a=3)),
            ]
        )
        + "\n"
    )
    second.write_text(encode(point(2.2, a=1)) + "\n")
    torn.write_bytes(encode(point(9.0, a=4)).encode()[:-5])
    found = read_earlier([first, second, torn, tmp_path / "gone"], "today")
    assert {name: found[name].speedup for name in found} == {name_of({"a": 1}): 2.2, name_of({"a": 3}): 1.5}
