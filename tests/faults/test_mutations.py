"""Files changed behind boundd's back: the store, its log, its mark, and what shims leave.

A point is one mutation of one file of a state folder that is otherwise whole: bits and runs of bytes, truncation at any
length, zero length, pages of zeros or noise, a page in another's place, another program's database, another store's
files, an older copy, files in each other's place, a file that is gone. Then the store is opened and everything it shows
is read: every cell, attempt, end, point, observation, duration, cordon, fact. Counted are

- noticed: refused at start, or with an error when the damaged part was read;
- harmless: all that is shown is the truth (a bit in an unused byte; a log in a form that SQLite repairs);
- silently accepted: anything else. Must be 0;
- overwritten: a file of a refused store that is not, byte for byte, what it was, or a new file beside it. Must be 0.

The same for `outcome.json`, `shim.json` and `spec.json`. Out of reach, and not counted here: the mark
(`boundd.db.commits`) removed together with an older copy put in the store's place, or put back together with it; a
power cut that takes the last unsynced seconds of the mark together with damage to the log; changes made on purpose,
with new sums.
`results.jsonl` is the worker's, whose lines have no check: one that is cut or broken is a malformed result, a number
that became another number is believed. Once it was read, the store's seals cover what it said.

To see it fail: return [] from `seals.mismatches` at once (bits in rows), return from `commit_mark.check` at once (older
copies, logs cut short), return [] from `seals.compare_history` (histories), drop the comparison in `records._checked`
and `shim.read_spec` (outcomes), drop the refusal of non-ASCII bytes in `records._read` (noise), or leave the -shm file
in `migrate._open_read_only` (overwritten).
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from boundd.catalogue.outcomes import Isolation
from boundd.core.model.attempts import AttemptState, CellRecord, CellState
from boundd.core.model.cells import Cell, CellPolicy
from boundd.core.model.outcomes import Measurement, Outcome, PointRecord, Verdict
from boundd.core.model.records import Record, SaveCell, SaveEnd, SavePaused, SavePoint, SaveQuarantine
from boundd.launch import shim
from boundd.launch.records import RecordError, read_outcome, read_shim
from boundd.ports import StoreBusyError, StoreError
from boundd.store.sqlite import SqliteStore
from tests.faults import campaign
from tests.store import release

SEED = 20_260
PAGE = 4096
STORE = "boundd.db"
Files = dict[str, bytes]
Truth = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Originals:
    """Whole state folders by name, what each shows, and files of others to be put in."""

    folders: dict[str, Files]
    truths: dict[str, Truth]
    strangers: dict[str, bytes]


async def shown(path: Path) -> Truth:
    """Everything that the store shows to a daemon.

    Raises:
        StoreError: it refuses to.
    """
    store = await SqliteStore.open(path)
    try:
        known = await store.load()
        parameters = [dict(record.cell.parameters) for record in known.cells]
        history = [await store.attempts_of(record.cell.key) for record in known.cells]
        return known, parameters, history, await store.recall("export-digests")
    finally:
        await store.aclose()


def files_of(folder: Path) -> Files:
    """The files of a folder, but for the shared memory that SQLite makes anew."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


async def originals(folder: Path) -> Originals:
    """A store closed in order and one whose daemon was killed with commits in its log; older copies, and strangers."""
    path = folder / "own" / STORE
    path.parent.mkdir()
    await release.write(path)
    older = files_of(path.parent)
    store = await SqliteStore.open(path)
    await store.commit(many_cells())
    await store.commit([SaveQuarantine(release.held("GPU-33333333-cccc", "added later")), SavePaused(False)])
    middle = files_of(path.parent)
    for n in range(3):
        await store.commit([SaveQuarantine(release.held(f"GPU-{n}", f"number {n}"))])
    await store.remember("export-digests", '["later"]')
    killed = files_of(path.parent)
    await store.aclose()
    closed = files_of(path.parent)
    other_path = folder / "other" / STORE
    other_path.parent.mkdir()
    await release.write(other_path)
    store = await SqliteStore.open(other_path)
    await store.commit([SavePaused(False)])
    other = files_of(other_path.parent)
    await store.aclose()
    with contextlib.closing(sqlite3.connect(folder / "theirs.db")) as theirs:
        theirs.execute("CREATE TABLE cells (key, label, state)")
        theirs.commit()
    strangers = {
        "an older copy": older[STORE],
        "the copy of the middle": middle[STORE],
        "an older log": middle[f"{STORE}-wal"],
        "another store": other[STORE],
        "another store's log": other[f"{STORE}-wal"],
        "another store's mark": other[f"{STORE}.commits"],
        "another program's": (folder / "theirs.db").read_bytes(),
        "a text": b"hello\n" * 1000,
    }
    folders = {"closed": closed, "killed": killed}
    truths = {}
    for name, files in folders.items():
        put(folder / name, files)
        truths[name] = await shown(folder / name / STORE)
    return Originals(folders, truths, strangers)


def many_cells() -> list[Record]:
    """Cells with results and a history, so that most of what can be hit is what matters."""
    measured = Measurement(2.5, 2.25, {"parameters": {"ratio": 0.5}}, Isolation.EXCLUSIVE, 2.75, {"torch": "2.6.0"})
    done = {"state": CellState.SUCCEEDED, "measurement": measured, "measured_device": "GPU-1", "duration_s": 61.5}
    verdict = Verdict(Outcome.SUCCEEDED, measured, None, 0, None, 61.5, 2**31, 2**32)
    records: list[Record] = []
    for n in range(60):
        cell = Cell.of({"model": "SDXL", "steps": n, "method": "tgate"}, ("model", "steps", "method"))
        attempt = replace(release.attempt(cell, 1), state=AttemptState.ENDED)
        point = PointRecord({"gate_step": n}, 1.25, 0.001, Isolation.EXCLUSIVE)
        records += [
            SaveCell(CellRecord(cell, CellPolicy(), attempts=1, **done)),
            SaveEnd(attempt, verdict, 1_700_000_000.5),
            SavePoint(attempt.id, 0, point),
        ]
    return records


def put(folder: Path, files: Files) -> None:
    """Make the folder hold these files and no others."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def flip(chance: random.Random, content: bytes) -> bytes:
    """One bit, nine times of ten in a byte that isn't 0: most of a small store's bytes hold nothing."""
    if not content:
        return b"\x01"
    at = chance.randrange(len(content))
    while not content[at] and any(content) and chance.randrange(10):
        at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


def run_of_bytes(chance: random.Random, content: bytes) -> bytes:
    """Up to 64 bytes in a row."""
    at = chance.randrange(len(content) + 1)
    noise = chance.randbytes(chance.randint(1, 64))
    return content[:at] + noise + content[at + len(noise) :]


def cut(chance: random.Random, content: bytes) -> bytes:
    """Shorter, by anything from a byte to all."""
    return content[: chance.randrange(len(content) + 1)]


def emptied(_chance: random.Random, _content: bytes) -> bytes:
    """Nothing."""
    return b""


def longer(chance: random.Random, content: bytes) -> bytes:
    """With noise behind it."""
    return content + chance.randbytes(chance.choice((1, 24, PAGE, PAGE + 24)))


def page(chance: random.Random, content: bytes) -> bytes:
    """A page of zeros, of noise, or of another place in the file."""
    at = chance.randrange(max(1, len(content) // PAGE)) * PAGE
    other = chance.randrange(max(1, len(content) // PAGE)) * PAGE
    new = chance.choice((bytes(PAGE), chance.randbytes(PAGE), content[other : other + PAGE]))
    return content[:at] + new[: len(content) - at] + content[at + PAGE :]


Mutate = Callable[[random.Random, bytes], bytes]
CHANGES: tuple[Mutate, ...] = (
    flip,
    flip,
    flip,
    flip,
    run_of_bytes,
    run_of_bytes,
    cut,
    cut,
    emptied,
    longer,
    page,
    page,
)


def mutated(chance: random.Random, files: Files, strangers: dict[str, bytes]) -> tuple[str, Files]:
    """One mutation, in words, and the files after it."""
    name = chance.choices(sorted(files), [3 if n == STORE else 2 if n.endswith("-wal") else 1 for n in sorted(files)])[
        0
    ]
    kind = chance.randrange(12)
    if kind == 0:
        stranger = chance.choice(sorted(strangers))
        return f"{name} is {stranger}", {**files, name: strangers[stranger]}
    if kind == 1 and len(files) > 1:
        one, two = chance.sample(sorted(files), 2)
        return f"{one} and {two} changed places", {**files, one: files[two], two: files[one]}
    if kind == 2:
        return f"{name} is gone", {other: content for other, content in files.items() if other != name}
    if kind == 3 and f"{STORE}-wal" not in files:
        stranger = chance.choice(("an older log", "another store's log"))
        return f"a log: {stranger}", {**files, f"{STORE}-wal": strangers[stranger]}
    change = chance.choice(CHANGES)
    return f"{name}: {change.__name__}", {**files, name: change(chance, files[name])}


def everything_in(folder: Path) -> Files:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def judged(folder: Path, files: Files, truth: Truth) -> str:
    """What came of a mutation: noticed, harmless, silently accepted or overwritten."""
    put(folder, files)
    before = everything_in(folder)
    try:
        store = await SqliteStore.open(folder / STORE)
    except (StoreError, StoreBusyError):
        return "noticed" if everything_in(folder) == before else "overwritten"
    await store.aclose()
    put(folder, files)
    try:
        return "harmless" if await shown(folder / STORE) == truth else "silently accepted"
    except (StoreError, StoreBusyError):
        return "noticed"


@campaign.sizes("points", short=500, long=50_000)
def test_store_files(tmp_path: Path, report: campaign.Report, points: int) -> None:
    """The store, its log and its mark: silently accepted 0, overwritten 0."""
    found: Counter[str] = Counter()
    bad: list[str] = []

    async def main() -> None:
        all_of = await originals(tmp_path)
        for number in range(points):
            chance = random.Random(SEED + number)
            which = chance.choice(("closed", "killed"))
            told, files = mutated(chance, all_of.folders[which], all_of.strangers)
            try:
                result = await judged(tmp_path / "mutated", files, all_of.truths[which])
            except Exception as error:
                result = f"crashed with {type(error).__name__}"
            found[result] += 1
            if result not in ("noticed", "harmless"):
                bad.append(f"point {number} (seed {SEED + number}), {which}: {told}: {result}")

    anyio.run(main)
    report(
        "mutated store files",
        points=points,
        noticed=found["noticed"],
        harmless=found["harmless"],
        silently_accepted=found["silently accepted"],
        overwritten=found["overwritten"],
    )
    assert not bad, "\n".join(bad)
    assert found["noticed"] > points // 3, found


DOCUMENTS: dict[str, dict[str, Any]] = {
    shim.OUTCOME: {
        "format": shim.OUTCOME_FORMAT, "exit_status": 0, "signal": None, "timed_out": False, "ended_on_request": False,
        "start_error": "", "wall_s": 1234.567, "lease_waited_s": 1.5, "host_peak_bytes": 2**31, "oom_killed": 0,
        "over_memory_max": False, "machine_oom_kills": 0,
    },
    shim.SHIM: {
        "format": shim.SHIM_FORMAT, "boot_id": "0d2b7f9e-7f0c-4a35-9b1c-3f6f2f0c9a11",
        "pid": 4711, "start_ticks": 123456, "worker_pid": 4712, "worker_start_ticks": 123460,
        "cgroup": "/sys/fs/cgroup/boundd/a.1",
    },
    shim.SPEC: {
        "format": shim.SPEC_FORMAT, "argv": ["python", "-m", "boundd.worker", "--steps", "20"],
        "env": {"PATH": "/usr/bin"}, "cwd": "/srv", "timeout_s": 3600.0, "grace_s": 10.0, "cgroup": "",
        "log_limit_bytes": 2**24,
    },
}  # fmt: skip


def read_document(folder: Path, name: str) -> object:
    """What the reader of a file makes of it."""
    if name == shim.SPEC:
        spec = shim.read_spec(str(folder / name))
        return {key: value for key, value in spec.items() if key != "check"}
    return read_outcome(folder) if name == shim.OUTCOME else read_shim(folder)


@campaign.sizes("points", short=3000, long=300_000)
def test_documents(tmp_path: Path, report: campaign.Report, points: int) -> None:
    """Outcomes, shims' records and specs: noticed, or all that is read is the truth."""
    found: Counter[str] = Counter()
    bad: list[str] = []
    whole: dict[str, bytes] = {}
    truth: dict[str, object] = {}
    others = [json.dumps({"format": shim.SPEC_FORMAT}).encode(), b"[]", b"null"]
    for name, document in DOCUMENTS.items():
        place = str(tmp_path / name)
        shim.write_atomically(place, shim.checked(place, document))
        whole[name] = (tmp_path / name).read_bytes()
        truth[name] = read_document(tmp_path, name)
        others += [whole[name], json.dumps(shim.checked(f"/attempts/another.1/{name}", document)).encode()]
    for number in range(points):
        chance = random.Random(SEED + number)
        name = chance.choice(sorted(DOCUMENTS))
        change = chance.choice((*CHANGES, lambda chance, _: chance.choice(others)))
        content = change(chance, whole[name])
        (tmp_path / name).write_bytes(content)
        try:
            same = read_document(tmp_path, name) == truth[name]
            result = "harmless" if same else "silently accepted"
        except (RecordError, ValueError, KeyError, TypeError):
            result = "noticed"
        found[result] += 1
        if result == "silently accepted":
            bad.append(f"point {number} (seed {SEED + number}): {name} became {content!r}")
        elif (tmp_path / name).read_bytes() != content:
            bad.append(f"point {number}: {name} was written to")
    report(
        "mutated outcomes, shim records and specs",
        points=points,
        noticed=found["noticed"],
        harmless=found["harmless"],
        silently_accepted=found["silently accepted"],
    )
    assert not bad, "\n".join(bad[:20])


def test_noise_in_a_string_does_not_swallow_the_check(tmp_path: Path) -> None:
    """A record whose last string took in the check would pass for one of a release that wrote none (seed 31203)."""
    place = tmp_path / shim.SHIM
    shim.write_atomically(str(place), shim.checked(str(place), DOCUMENTS[shim.SHIM]))
    written = place.read_bytes()
    before, after = written.index(b'", "check": "'), written.rindex(b'"}')
    place.write_bytes(written[:before] + b"\xb5\xf6$" + written[after:])
    with pytest.raises(RecordError, match="damaged"):
        read_shim(tmp_path)
