"""Exports: the four formats, what each leaves out, and files that are not ours."""

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.api.constants import EXPORT_FORMATS, ExportFormat
from boundd.catalogue.models import pipeline_classes
from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import AttemptError, Measurement
from boundd.results.bounds import BoundRules
from boundd.results.export import (
    CellTexts,
    ExportCell,
    LeftOut,
    Rendered,
    render_export,
)
from boundd.telemetry.export_file import (
    ForeignExportError,
    check_may_write,
    clear_drafts,
    digest_of,
    is_boundd_json,
    write_export,
    written_by_us,
)

AXES = ["model", "scheduler", "steps", "method"]
HOSTILE = '=1+1,"\n\x00\ud800\x1b[31m'


def measurement(within: float | None = 2.0, isolation: Isolation = Isolation.EXCLUSIVE) -> Measurement:
    """What a worker measured: 3.0 at any loss."""
    best = {"parameters": {"cache_interval": 3, "cache_branch_id": 0}, "speedup": within or 3.0, "score_loss": None}
    return Measurement(3.0, within, best | {"score_loss": 0.01 if within else None}, isolation)


def cell(
    found: Measurement | None = None, error: AttemptError | None = None, state: CellState | None = None, **parts: Any
) -> ExportCell:
    """A cell for an export; succeeded where it has a measurement, failed where it has an error."""
    known = {"model": "SD1.5", "scheduler": "DDIM", "steps": 20, "method": "deepcache", "tolerance": 0.02} | parts
    default = CellState.SUCCEEDED if found else CellState.FAILED if error else CellState.PENDING
    record = CellRecord(
        Cell.of(known, AXES), CellPolicy(), state or default, attempts=2, error=error, measurement=found,
        measured_device="GPU-1" if found else "", measured_batch_size=2 if found else None,
    )  # fmt: skip
    return ExportCell.of(record, pipeline_classes())


def render(kind: ExportFormat, *cells: ExportCell) -> Rendered:
    """The export, with the usual safety factor."""
    return render_export(kind, cells, rules=BoundRules(1.1), now_unix_s=1_700_000_000.0, version="0.1.0")


def error(kind: ErrorKind = ErrorKind.OUT_OF_MEMORY, message: str = "CUDA out of memory") -> AttemptError:
    """A failure in November 2023."""
    return AttemptError(kind, message, 1_700_000_000.0)


def test_kept_texts_change_nothing_but_the_time_it_takes() -> None:
    """With the texts of the export before, a document says what it would say without: for cells that have changed, for
    those that have not, for a new staleness, and it is the JSON that any other writer would indent."""
    texts = CellTexts(BoundRules(1.1))
    before = [cell(model="SD1.5"), cell(error=error(message=HOSTILE), model="SDXL")]
    after = [cell(measurement(), model="SD1.5"), replace(before[1], stale=True), cell(model="SD2.1")]
    for cells in (before, after, [], before):
        kept = render_export("json", cells, rules=BoundRules(1.1), now_unix_s=0.0, version="1", texts=texts).text
        assert kept == render_export("json", cells, rules=BoundRules(1.1), now_unix_s=0.0, version="1").text
        assert kept == json.dumps(json.loads(kept), indent=2) + "\n"


def test_a_cell_that_has_not_changed_keeps_its_text() -> None:
    """The same object comes back, so that an export after one result doesn't cost as much as the matrix."""
    texts, known = CellTexts(BoundRules(1.1)), cell(measurement())
    assert texts.of(known) is texts.of(replace(known))
    assert texts.of(replace(known, record=replace(known.record, attempts=9))) is not texts.of(known)


def test_json_says_everything() -> None:
    """The document and its cells hold the fields of the interface."""
    text = render("json", cell(measurement()), cell(error=error(), model="SDXL")).text
    document = json.loads(text)
    assert is_boundd_json(text.encode())
    assert document["format"] == "boundd/1"
    assert document["generated_at"] == "2023-11-14T22:13:20.000Z"
    assert document["boundd_version"] == "0.1.0"
    first, second = document["cells"]
    expected = {
        "key": {"model": "SD1.5", "scheduler": "DDIM", "steps": 20, "method": "deepcache", "tolerance": 0.02},
        "label": "SD1.5/DDIM/20/deepcache",
        "state": "succeeded",
        "max_speedup": 3.0,
        "max_speedup_within_tolerance": 2.0,
        "upper_bound": 1.1 * 2.0,
        "upper_bound_of": "max_speedup_within_tolerance",
        "stale": False,
        "best": {"parameters": {"cache_interval": 3, "cache_branch_id": 0}, "speedup": 2.0, "score_loss": 0.01},
        "isolation": "exclusive",
        "batch_size": 2,
        "device": "GPU-1",
        "attempts": 2,
        "error": None,
    }
    assert {name: first[name] for name in expected} == expected
    assert second["error"] == {
        "type": "out_of_memory",
        "message": "CUDA out of memory",
        "at": "2023-11-14T22:13:20.000Z",
    }
    assert second["upper_bound"] is None


def test_legacy_is_the_old_file() -> None:
    """Keys and values are spelt as the old script spelt them."""
    combined = cell(measurement(), scheduler="UniPC", method="tome+deepcache")
    failed = cell(error=error(ErrorKind.TIMEOUT, "m" * 5000), scheduler="DPM-Solver++", steps=50)
    rendered = render("legacy", cell(measurement()), combined, failed, cell(model="SDXL"))
    assert rendered.left_out == ()
    document = json.loads(rendered.text)
    failures = document.pop("failed_configs")
    assert document == {
        "('StableDiffusionPipeline', 'DDIMScheduler', '20', 'upbound_speedup', 0.02, ['deepcache'])": {
            "max_speedup": 2.2
        },
        "('StableDiffusionPipeline', 'UniPCMultistepScheduler', '20', 'upbound_speedup', 0.02, "
        "['deepcache', 'tome'])": {"max_speedup": 2.2},
    }
    (key,) = failures
    assert key == "StableDiffusionPipeline_DPMSolverMultistepScheduler_50_deepcache"
    assert failures[key]["error"] == "timeout"
    assert len(failures[key]["message"]) == 1000


def test_legacy_names_the_cells_that_share_a_key() -> None:
    """The first cell of the matrix owns a key, even before it has a result; the others are named."""
    pending, other = cell(), cell(measurement(), model="SD2.1")
    for found, taken in ((pending, 0), (cell(measurement()), 1)):
        rendered = render("legacy", found, other)
        assert len(json.loads(rendered.text)) - 1 == taken
        (left_out,) = rendered.left_out
        assert left_out.label == "SD2.1/DDIM/20/deepcache"
        assert "SD1.5/DDIM/20/deepcache" in left_out.reason
    failed = render("legacy", cell(measurement()), cell(error=error(), model="SD2.1"))
    assert json.loads(failed.text)["failed_configs"] == {}
    assert [left.label for left in failed.left_out] == ["SD2.1/DDIM/20/deepcache"]


def test_legacy_names_cells_without_a_bound_or_a_key() -> None:
    """A contended result is no bound; a cell without steps or of an unknown pipeline has no old key."""
    contended = cell(measurement(isolation=Isolation.CONTENDED))
    unknown = cell(measurement(), model="mine")
    reasons = [left.reason for left in render("legacy", contended, unknown).left_out]
    assert "contended" in reasons[0]
    assert "lacks" in reasons[1]


def test_search_params_hold_the_best_parameters() -> None:
    """Only what was scored, within the tolerance and timed alone is recommended."""
    cells = (
        cell(measurement()),
        cell(measurement(None), steps=25),
        cell(measurement(isolation=Isolation.UNKNOWN), steps=50),
        cell(steps=30),
    )
    rendered = render("search-params", *cells)
    assert list(json.loads(rendered.text).values()) == [
        {"cache_interval": 3, "cache_branch_id": 0, "speedup": 2.0, "score_loss": 0.01}
    ]
    assert [left.label for left in rendered.left_out] == ["SD1.5/DDIM/25/deepcache", "SD1.5/DDIM/50/deepcache"]


def test_csv_has_a_row_a_cell() -> None:
    """Hostile text stays within its field."""
    rows = list(
        csv.DictReader(
            io.StringIO(render("csv", cell(measurement()), cell(error=error(message=HOSTILE), seed=1)).text, newline="")
        )
    )
    assert len(rows) == 2
    assert rows[0]["key.model"] == "SD1.5"
    assert float(rows[0]["upper_bound"]) == pytest.approx(2.2)
    assert rows[0]["key.seed"] == ""
    assert rows[1]["error_message"] == HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


@given(st.text(), st.text(), st.text())
def test_any_text_can_be_exported(model: str, method: str, message: str) -> None:
    """Every format takes any text, and the result can be written as UTF-8."""
    cells = (cell(error=error(message=message), model=model, method=method), cell(measurement(), scheduler=message))
    for kind in EXPORT_FORMATS:
        render(kind, *cells).text.encode()


@pytest.mark.parametrize("kind", EXPORT_FORMATS)
def test_no_cells(kind: ExportFormat) -> None:
    """An export of nothing is a whole document."""
    assert render(kind).left_out == ()


def test_unknown_format() -> None:
    """A format that isn't one is named with those that are."""
    with pytest.raises(ValueError, match="search-params"):
        render("yaml")  # type: ignore[arg-type]


def test_left_out_is_a_value() -> None:
    """What is left out can be compared and printed."""
    assert LeftOut("a", "b") == LeftOut("a", "b")


def test_write_makes_and_replaces_its_own(tmp_path: Path) -> None:
    """A new file is made; our own is replaced with its mode kept; the same text is not written again."""
    path = tmp_path / "speedup_bounds.json"
    text = render("json").text
    assert write_export(path, text, is_boundd_json)
    path.chmod(0o604)
    before = path.stat()
    assert not write_export(path, text, is_boundd_json)
    assert path.stat().st_ino == before.st_ino
    assert write_export(path, text + " ", is_boundd_json)
    assert path.stat().st_mode & 0o777 == 0o604
    assert path.stat().st_ino != before.st_ino
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"format": "boundd/2"}', b"\xff\x00", b'["boundd/1"]', b"[" * 100_000]
)
def test_a_foreign_file_is_never_overwritten(tmp_path: Path, content: bytes) -> None:
    """Somebody's file stays byte for byte, and the error says what to do."""
    path = tmp_path / "speedup_bounds.json"
    path.write_bytes(content)
    for attempt in (
        lambda: write_export(path, "new", is_boundd_json),
        lambda: check_may_write(path, written_by_us([digest_of("x")], [])),
    ):
        with pytest.raises(ForeignExportError, match="boundctl import"):
            attempt()
    assert path.read_bytes() == content


def test_other_formats_are_known_by_their_digest(tmp_path: Path) -> None:
    """A legacy export whose digest the caller remembers is ours; once somebody edits it, it is theirs."""
    path = tmp_path / "bounds.json"
    path.write_text("{}\n")
    mine = written_by_us([digest_of("{}\n")], ["me"])
    check_may_write(path, mine)
    path.write_text('{"edited": 1}\n')
    with pytest.raises(ForeignExportError):
        write_export(path, "{}", mine)


def test_links_and_odd_places(tmp_path: Path) -> None:
    """A link stays a link; a folder or a pipe is refused unopened; a missing folder is an OSError."""
    target, link = tmp_path / "real.json", tmp_path / "link.json"
    target.write_text(render("json").text)
    link.symlink_to(target)
    write_export(link, render("json", cell()).text, is_boundd_json)
    assert link.is_symlink()
    assert "SD1.5" in target.read_text()
    os.mkfifo(tmp_path / "fifo")
    for odd in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(ForeignExportError):
            write_export(odd, "x", is_boundd_json)
    with pytest.raises(FileNotFoundError):
        write_export(tmp_path / "missing" / "x", "x", is_boundd_json)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full in the middle, the old export is whole and nothing is left beside it."""
    path = tmp_path / "x.json"
    old = render("json").text
    path.write_text(old)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("boundd.telemetry.export_file.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_export(path, render("json", cell()).text, is_boundd_json)
    assert path.read_text() == old
    assert list(tmp_path.iterdir()) == [path]


def test_drafts_of_killed_writers_go(tmp_path: Path) -> None:
    """Those of processes that are gone; one that is being written, other exports' and other files stay."""
    path = tmp_path / "bounds[1].json"
    dead = next(pid for pid in range(4_000_000, 4_194_304) if not Path(f"/proc/{pid}").exists())
    names = [f".bounds[1].json.{dead}.tmp", f".bounds[1].json.{os.getpid()}.tmp", f".other.json.{dead}.tmp", ".x.tmp"]
    names.append(".bounds[1].json.mine.tmp")
    for name in names:
        (tmp_path / name).touch()
    # That something can't be removed is no reason not to start.
    names.append(f".bounds[1].json.{dead + 1}.tmp")
    (tmp_path / names[-1]).mkdir()
    clear_drafts(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names[1:])


def test_an_accepted_bound_of_unknown_isolation_says_so_in_every_format() -> None:
    """In the old formats by a key that they did not have; without the config's word there is no entry."""
    found = cell(measurement(isolation=Isolation.UNKNOWN))
    rules = BoundRules(1.1, accept_unknown=True)

    def text(kind: ExportFormat, rules: BoundRules = rules) -> str:
        return render_export(kind, [found], rules=rules, now_unix_s=0.0, version="1").text

    document = json.loads(text("json"))
    assert document["accept_unknown"] is True
    (told,) = document["cells"]
    assert (told["isolation"], told["upper_bound"]) == ("unknown", pytest.approx(2.2))
    (entry,) = [value for key, value in json.loads(text("legacy")).items() if key != "failed_configs"]
    assert entry == {"max_speedup": 2.2, "isolation": "unknown"}
    (entry,) = json.loads(text("search-params")).values()
    assert entry["isolation"] == "unknown"
    assert ",unknown," in text("csv")
    assert json.loads(text("legacy", BoundRules(1.1))) == {"failed_configs": {}}
    assert json.loads(text("search-params", BoundRules(1.1))) == {}
