"""Readings that make no sense: by the rules alone, and from a driver that gives them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundd.core.model.devices import DeviceReading
from boundd.devices.nvml import NvmlProbe
from boundd.devices.plausibility import DeviceIdentity, contradiction, identity_of, without_duplicates
from tests.fake_nvml import COMPUTE, GRAPHICS, MPS
from tests.faults.campaign import drawn_seed, line, record, sizes

GIB = 1024**3
NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, UNKNOWN = 3, 4, 15, 999


@pytest.fixture
async def probe(fake: Any) -> AsyncIterator[NvmlProbe]:
    """A probe of the fake that reads counters of errors at each pass."""
    probe = NvmlProbe(fake.environ, deadline_s=2.0, first_backoff_s=0.0, health_interval_s=0.0)
    yield probe
    await probe.aclose()


def put(device: Any, **fields: Any) -> dict[str, Any]:
    """Set fields of a fake device; what they were."""
    before = {name: getattr(device, name) for name in fields}
    for name, value in fields.items():
        setattr(device, name, value)
    return before


NONSENSE = {
    "N/A memory": ({"memory_unknown": 1}, "N/A for its memory now, and reported 80.0 GiB before"),
    "memory refused": ({"memory_error": NOT_SUPPORTED}, "N/A for its memory now"),
    "another total": ({"total": 79 * GIB}, "84,825,604,096 bytes of memory now, and reported 85,899,345,920 before"),
    "no memory at all": ({"total": 0, "reserved": 0}, "0 free bytes of 0"),
    "more free than there is": ({"free_excess": 2 * GIB}, "free bytes of 85,899,345,920, which can't be true"),
    "a name that is no text": ({"name": b"Fake \xff\xfe"}, "name is no UTF-8 text, a bug of the driver's"),
    "another name": ({"name": b"Fake H100"}, "calls it Fake H100 now, and called it Fake A100 before"),
    "another's UUID": ({"uuid": b"GPU-b"}, ""),
    "a UUID that is no text": ({"uuid": b"GPU-\xff"}, "UUID is no UTF-8 text"),
    "every query fails": ({"memory_error": UNKNOWN}, "NVML error 999"),
    "gone": ({"lost": GPU_IS_LOST}, "lost"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", list(NONSENSE))
async def test_nonsense_makes_its_device_unavailable_until_it_makes_sense(
    fake: Any, probe: NvmlProbe, kind: str
) -> None:
    """That one alone, with the reason; the third device is never touched."""
    fake.add("GPU-c", "Fake L4", 24)
    before = {reading.uuid: reading for reading in await probe.read(processes=True)}
    fields, why = NONSENSE[kind]
    was = put(fake.devices[0], **fields)
    now = {reading.uuid: reading for reading in await probe.read(processes=True)}
    assert now["GPU-c"] == before["GPU-c"]
    ill = now["GPU-a"]
    assert (ill.total_bytes, ill.free_bytes, ill.process_bytes) == (None, None, None)
    assert why in ill.unavailable
    assert ill.unavailable
    if kind == "another's UUID":
        assert now["GPU-b"].unavailable == "the driver gives this UUID to 2 devices (0, 1)"
    else:
        assert now["GPU-b"] == before["GPU-b"]
    put(fake.devices[0], **was)
    after = {reading.uuid: reading for reading in await probe.read(processes=True)}
    assert {uuid: after[uuid] for uuid in before} == before


@pytest.mark.anyio
async def test_a_device_with_a_name_that_is_no_text_is_out_from_the_start(fake: Any) -> None:
    """And the other is measured on: one byte of a driver's bug stops no box."""
    fake.devices[0].name = b"NVIDIA \x80\x81"
    probe = NvmlProbe(fake.environ)
    first, second = await probe.read(processes=False)
    assert (first.uuid, first.name) == ("GPU-a", "unknown NVIDIA device")
    assert "no UTF-8 text" in first.unavailable
    assert not second.unavailable
    await probe.aclose()


@pytest.mark.anyio
async def test_shared_memory_that_becomes_the_devices_own_is_a_contradiction(fake: Any, probe: NvmlProbe) -> None:
    """Both ways: what was learned of the one is wrong for the other."""
    fake.devices[1].memory_unknown = 1
    assert "the host's" in (await probe.read(processes=False))[1].remark
    fake.devices[1].memory_unknown = 0
    assert "of its own now, and reported none before" in (await probe.read(processes=False))[1].unavailable


@pytest.mark.anyio
async def test_every_kind_of_list_is_read(fake: Any, probe: NvmlProbe) -> None:
    """Who draws, and who computes through MPS, is on the device too; the driver's own memory is told apart."""
    for pid, kinds in ((4711, COMPUTE), (4712, GRAPHICS), (4713, MPS), (4714, COMPUTE | GRAPHICS)):
        fake.allocate(0, pid, GIB)
        fake.process(0, pid).kinds = kinds
    first, second = await probe.read(processes=True)
    assert first.process_bytes == dict.fromkeys((4711, 4712, 4713, 4714), GIB)
    assert (first.unreadable, first.reserved_bytes) == ({}, 80 * GIB // 100)
    assert second.process_bytes == {}
    put(fake.devices[0], graphics_error=NO_PERMISSION, mps_error=NOT_SUPPORTED)
    fake.devices[1].process_error = NOT_SUPPORTED
    first, second = await probe.read(processes=True)
    assert first.process_bytes == dict.fromkeys((4711, 4714), GIB)
    assert list(first.unreadable) == ["graphics"], "a device without MPS has no clients of it"
    assert (second.process_bytes, list(second.unreadable)) == (None, ["compute"])
    fake.devices[0].mps_error = UNKNOWN
    assert list((await probe.read(processes=True))[0].unreadable) == ["graphics", "MPS"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("remap_pending", "replaced at the next reset"),
        ("remap_failed", "could not be replaced"),
        ("retired_pending", "retired at the next reboot"),
        ("recovery_action", "the driver asks for a reset of the GPU"),
        ("ecc_uncorrected", "1 uncorrected ECC error(s)"),
    ],
)
async def test_what_the_driver_holds_against_a_whole_goes_for_its_instances(
    fake: Any, probe: NvmlProbe, field: str, words: str
) -> None:
    """Of a divided device too, whose instances don't have these counters."""
    setattr(fake.devices[1], field, 1)
    assert words in (await probe.read(processes=False))[1].driver_fault
    setattr(fake.devices[1], field, 0)
    put(fake.devices[0], mig_mode=1, **{field: 1})
    fake.add("MIG-1", "Fake A100 MIG 3g.40gb", 40, mig_parent=0).ecc_error = NOT_SUPPORTED
    parent, instance, other = await probe.read(processes=False)
    assert words in parent.driver_fault
    assert words in instance.driver_fault
    assert (instance.parent, instance.slot) == ("GPU-a", 0)
    assert not other.driver_fault


@pytest.mark.anyio
@sizes("variants", short=500, long=20_000)
async def test_no_healthy_device_is_left_out_for_another(fake: Any, probe: NvmlProbe, variants: int) -> None:
    """Boxes of five GPUs whose driver is odd about some of them, by the real binding on the fake library: those are
    out with a reason, the others are read as ever, and all are back once the driver is sane.

    With an error of one device handed on to the whole pass (as non-UTF-8 names once were), everybody is out.
    """
    fake.header.device_count = 0
    for number in range(5):
        fake.add(f"GPU-{number}", "Fake A100" if number < 3 else "Fake L4", 80 if number < 3 else 24)
    before = {reading.uuid: reading for reading in await probe.read(processes=True)}
    seed = drawn_seed()
    draw = random.Random(seed)
    idle = accepted = unexplained = lingering = 0
    for _ in range(variants):
        was: list[tuple[int, dict[str, Any]]] = []
        out: set[str] = set()
        odd = draw.sample(range(5), draw.randrange(5))
        for number in odd:
            kind = draw.choice(list(NONSENSE))
            fields = dict(NONSENSE[kind][0])
            if kind == "another's UUID":
                # Of two odd ones, one under the other's UUID may be told from it by nothing.
                other = draw.choice([n for n in range(5) if n not in odd])
                fields = {"uuid": f"GPU-{other}".encode()}
                out.add(f"GPU-{other}")
            out.add(f"GPU-{number}")
            was.append((number, put(fake.devices[number], **fields)))
        now = {reading.uuid: reading for reading in await probe.read(processes=draw.random() < 0.5)}
        for uuid, reading in now.items():
            accepted += uuid in out and not reading.unavailable
            idle += uuid not in out and bool(reading.unavailable) and not reading.is_placeholder
            unexplained += bool(reading.unavailable) and reading.free_bytes is not None
        idle += len(set(before) - set(now))
        for number, fields in reversed(was):
            put(fake.devices[number], **fields)
        after = {reading.uuid: reading for reading in await probe.read(processes=True)}
        lingering += after != before
    figures: dict[str, object] = {"boxes": variants, "healthy_devices_left_idle": idle, "nonsense_accepted": accepted}
    figures |= {"numbers_beside_a_reason": unexplained, "not_back": lingering, "seed": seed}
    record("odd drivers", figures)
    print(line("odd drivers", figures))
    assert (idle, accepted, unexplained, lingering) == (0, 0, 0, 0)


# By the rules alone

ENTRIES = st.fixed_dictionaries(
    {
        "index": st.integers(0, 3),
        "uuid": st.sampled_from(["GPU-a", "GPU-b", "GPU-c", ""]),
        "name": st.sampled_from(["A100", "L4"]),
        "total": st.sampled_from([24 * GIB, 80 * GIB]),
        "free": st.just(GIB),
        "shared": st.booleans(),
    }
)


def makes_sense_or_is_out(passes: list[list[dict[str, Any]]]) -> None:
    """Walk through passes: each device keeps what it told first, is out for anything else, and for nothing else."""
    told: dict[str, DeviceIdentity] = {}
    for entries in passes:
        found = without_duplicates(entries)
        uuids = [entry["uuid"] for entry in entries if entry["uuid"]]
        assert [e["uuid"] for e in found if e["uuid"]] == list(dict.fromkeys(uuids))
        assert sum(not entry["uuid"] for entry in found) == sum(not entry["uuid"] for entry in entries)
        for entry in found:
            if not entry["uuid"]:
                continue
            is_twin = uuids.count(entry["uuid"]) > 1
            assert bool(entry.get("unavailable")) == is_twin
            if is_twin:
                assert "total" not in entry
                continue
            known = told.setdefault(entry["uuid"], identity_of(entry, "1"))
            same_memory = known.is_shared or entry["total"] == known.total_bytes
            fits = (entry["name"], entry["shared"]) == (known.name, known.is_shared) and same_memory
            assert bool(contradiction(entry, "1", known)) != fits
            assert not contradiction(entry, "2", known), "another driver may count otherwise"


@settings(max_examples=700, deadline=None)
@given(st.lists(st.lists(ENTRIES, max_size=4), max_size=4))
def test_generated_passes(passes: list[list[dict[str, Any]]]) -> None:
    """700 histories of a box whose driver says whatever it likes."""
    makes_sense_or_is_out(passes)


@pytest.mark.campaign
@pytest.mark.timeout(0)
@settings(max_examples=20_000, deadline=None)
@given(st.lists(st.lists(ENTRIES, max_size=4), max_size=4))
def test_generated_passes_at_length(passes: list[list[dict[str, Any]]]) -> None:
    """20,000 of them."""
    makes_sense_or_is_out(passes)


def test_placeholders_are_told_from_devices() -> None:
    """They vanish once the device tells its UUID."""
    assert DeviceReading("UNKNOWN-0", 0, "x").is_placeholder
    assert not DeviceReading("GPU-a", 0, "x").is_placeholder
