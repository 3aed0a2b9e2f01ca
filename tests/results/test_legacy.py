"""The old speedup_bounds.json: reading it, and finding the cells that it means."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundd.catalogue.models import pipeline_classes
from boundd.catalogue.outcomes import ErrorKind, Isolation
from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import AttemptError, Measurement
from boundd.results.bounds import BoundRules
from boundd.results.export import ExportCell, render_export
from boundd.results.legacy import Ambiguous, LegacyError, match_legacy, parse_legacy

KEY = "('StableDiffusionPipeline', 'DDIMScheduler', '20', 'upbound_speedup', 0.02, ['deepcache'])"
XL_KEY = KEY.replace("StableDiffusionPipeline", "StableDiffusionXLPipeline")
FAILED_KEY = "StableDiffusionXLPipeline_UniPCMultistepScheduler_50_deepcache+tome"
FAILURE = {"error": "cuda_oom", "message": "no memory", "timestamp": "2023-11-14T22:13:20+00:00"}


def cell(**parts: Any) -> Cell:
    """A cell of SD1.5, DDIM and deepcache at 20 steps, but for what is said otherwise."""
    known = {"model": "SD1.5", "scheduler": "DDIM", "steps": 20, "method": "deepcache", "tolerance": 0.02}
    return Cell.of(known | parts, ["model", "scheduler", "steps", "method"])


SD15, SD21, SDXL = cell(), cell(model="SD2.1"), cell(model="SDXL")
XL_COMBINED = cell(model="SDXL", scheduler="unipc", steps=50, method="tome+deepcache")
CELLS = (SD15, SD21, SDXL, XL_COMBINED)


def old_file(entries: dict[str, Any], **failed: Any) -> str:
    """An old file's text."""
    return json.dumps({**entries, "failed_configs": failed})


def test_an_unambiguous_file_is_matched() -> None:
    """A bound and a failure find their cells, through the schedulers' names and the order of methods."""
    file = parse_legacy(old_file({XL_KEY: {"max_speedup": 2.31}}, **{FAILED_KEY: FAILURE}))
    match = match_legacy(file, CELLS, pipeline_classes())
    assert match.ambiguous == ()
    assert match.unmatched == ()
    bound, failure = match.entries
    assert (bound.key, failure.key) == (SDXL.key, XL_COMBINED.key)
    assert bound.measurement is not None
    assert bound.measurement.imported_upper_bound == 2.31
    assert bound.measurement.max_speedup is None
    assert bound.measurement.isolation is Isolation.UNKNOWN
    assert (failure.error_kind, failure.message) == (ErrorKind.OUT_OF_MEMORY, "no memory")
    assert failure.at_unix_s == 1_700_000_000.0


def test_an_ambiguous_key_needs_a_model() -> None:
    """The old key fits SD1.5 and SD2.1: nothing is guessed, and --model decides."""
    file = parse_legacy(old_file({KEY: {"max_speedup": 2.0}}))
    match = match_legacy(file, CELLS, pipeline_classes())
    assert match.entries == ()
    assert match.ambiguous == (Ambiguous(KEY, ("SD1.5", "SD2.1")),)
    chosen = match_legacy(file, CELLS, pipeline_classes(), "SD2.1")
    assert [entry.key for entry in chosen.entries] == [SD21.key]
    with pytest.raises(LegacyError, match=r"SD1\.5, SD2\.1, SDXL"):
        match_legacy(file, CELLS, pipeline_classes(), "SD3")


def test_what_fits_no_one_cell_is_named() -> None:
    """Another tolerance, several cells of one model, a failure beside a bound: each is said with its reason."""
    other = KEY.replace("0.02", "0.05")
    match = match_legacy(parse_legacy(old_file({other: {"max_speedup": 2}})), CELLS, pipeline_classes())
    assert match.unmatched == (f"{other}: no cell of the matrix is like it",)
    file = parse_legacy(old_file({XL_KEY: {"max_speedup": 2}}))
    twice = match_legacy(file, (SDXL, cell(model="SDXL", seed=2)), pipeline_classes())
    assert "fits 2 cells of SDXL" in twice.unmatched[0]
    both = old_file({XL_KEY: {"max_speedup": 2}}, StableDiffusionXLPipeline_DDIMScheduler_20_deepcache=FAILURE)
    match = match_legacy(parse_legacy(both), CELLS, pipeline_classes())
    assert [entry.measurement is not None for entry in match.entries] == [True]
    assert "is taken by" in match.unmatched[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cuda_oom", ErrorKind.OUT_OF_MEMORY),
        ("timeout", ErrorKind.TIMEOUT),
        ("subprocess_error", ErrorKind.OTHER),
        ("unknown_error", ErrorKind.OTHER),
    ],
)
def test_errors_are_translated(name: str, kind: ErrorKind) -> None:
    """The old names of errors become ours; a failure may lack its message and time."""
    (failure,) = parse_legacy(old_file({}, **{FAILED_KEY: {"error": name}})).failures
    assert (failure.kind, failure.message, failure.at_unix_s) == (kind, "", None)
    assert failure.methods == ("deepcache", "tome")


@pytest.mark.parametrize(
    ("entries", "failed"),
    [
        ({"not a tuple": {"max_speedup": 1}}, {}),
        ({"__import__('os').abort()": {"max_speedup": 1}}, {}),
        ({"(" * 1500: {"max_speedup": 1}}, {}),
        ({"-" * 1999 + "1": {"max_speedup": 1}}, {}),
        ({KEY.replace("upbound_speedup", "speed"): {"max_speedup": 1}}, {}),
        ({KEY.replace("'20'", "20"): {"max_speedup": 1}}, {}),
        ({KEY.replace("['deepcache']", "[]"): {"max_speedup": 1}}, {}),
        ({KEY.replace("['deepcache']", "[1]"): {"max_speedup": 1}}, {}),
        ({KEY: 2.0}, {}),
        ({KEY: {"max_speedup": "2"}}, {}),
        ({KEY: {"max_speedup": True}}, {}),
        ({KEY: {"max_speedup": -1}}, {}),
        ({}, {"nounderscores": FAILURE}),
        ({}, {FAILED_KEY: {"error": "fire"}}),
        ({}, {FAILED_KEY: {"error": ["cuda_oom"]}}),
        ({}, {FAILED_KEY: {"error": "timeout", "message": 1}}),
        ({}, {FAILED_KEY: {"error": "timeout", "timestamp": "yesterday"}}),
    ],
)
def test_malformed_entries_are_named(entries: dict[str, Any], failed: dict[str, Any]) -> None:
    """An entry that the old script can't have written stops the import and is named."""
    with pytest.raises(LegacyError, match="the entry") as caught:
        parse_legacy(old_file(entries, **failed))
    name = next(iter([*entries, *failed]))
    assert repr(name)[1:50] in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "nan", '{"failed_configs": []}', '{"format": "boundd/1"}', "[" * 100_000])
def test_what_is_no_old_file_is_refused(text: str) -> None:
    """A file of another kind is refused as a whole."""
    with pytest.raises(LegacyError):
        parse_legacy(text)


@given(st.text())
def test_any_key_is_read_or_refused(key: str) -> None:
    """No key makes anything but a file or a LegacyError."""
    for text in (json.dumps({key: {"max_speedup": 1}}), json.dumps({"failed_configs": {key: FAILURE}})):
        try:
            parse_legacy(text)
        except LegacyError:
            continue


@given(st.dictionaries(st.sampled_from(CELLS[2:]), st.floats(0.01, 100) | st.sampled_from(ErrorKind), min_size=1))
def test_round_trip(found: dict[Cell, Any]) -> None:
    """What the legacy export says of a cell, the import says again: the bound to two digits, the error by its kind."""
    records = []
    for known, value in found.items():
        measured = Measurement(None, None, None, Isolation.UNKNOWN, imported_upper_bound=value)
        is_bound = isinstance(value, float)
        error = None if is_bound else AttemptError(value, "why", 1_700_000_000.5)
        state = CellState.SUCCEEDED if is_bound else CellState.FAILED
        measurement = measured if is_bound else None
        records.append(CellRecord(known, CellPolicy(), state, error=error, measurement=measurement))
    cells = [ExportCell.of(record, pipeline_classes()) for record in records]
    rendered = render_export("legacy", cells, rules=BoundRules(1.1), now_unix_s=0.0, version="0")
    match = match_legacy(parse_legacy(rendered.text), CELLS, pipeline_classes())
    assert rendered.left_out == match.ambiguous == match.unmatched == ()
    kept = (ErrorKind.OUT_OF_MEMORY, ErrorKind.TIMEOUT)
    for entry in match.entries:
        value = next(value for known, value in found.items() if known.key == entry.key)
        if isinstance(value, float):
            assert entry.measurement is not None
            assert entry.measurement.imported_upper_bound == round(value, 2)
        else:
            assert entry.error_kind is (value if value in kept else ErrorKind.OTHER)
            assert (entry.message, entry.at_unix_s) == ("why", 1_700_000_000.5)
    assert len(match.entries) == len(found)
