"""Who is on a device: that nothing is attested which was not seen, and that what was seen is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundd.catalogue.outcomes import Isolation
from boundd.protocol.attestation import (
    UNACCOUNTED_BYTES,
    IsolationVerdict,
    ProcessLists,
    ProcessOwner,
    attest_isolation,
)

GIB, MIB = 1024**3, 1024**2
ME = 100
OURS = {ME: ProcessOwner.OURS}


def verdict(
    processes: Mapping[int, int | None],
    owners: Mapping[int, ProcessOwner] = OURS,
    *,
    in_host_namespace: bool = True,
    unreadable: Mapping[str, str] | None = None,
    used: int | None = None,
    own: int | None = None,
) -> IsolationVerdict:
    """The verdict on lists whose pids are of these owners; any other pid is a stranger's."""
    lists = ProcessLists(processes, unreadable or {}, used)
    return attest_isolation(
        lists, lambda pid: owners.get(pid, ProcessOwner.STRANGER), in_host_namespace=in_host_namespace, own_bytes=own
    )


def test_alone_is_exclusive() -> None:
    """This worker in the lists, and nobody else but partners of the same lease and what has ended."""
    assert verdict({ME: GIB}) == IsolationVerdict(Isolation.EXCLUSIVE, seen=True)
    assert verdict({ME: GIB, 7: GIB}, OURS | {7: ProcessOwner.PARTNER}).isolation == "exclusive"
    assert verdict({ME: GIB, 7: GIB}, OURS | {7: ProcessOwner.ABSENT}).isolation == "exclusive"


def test_a_stranger_is_named() -> None:
    """Whatever else could not be read."""
    seen = verdict({ME: GIB, 7: None}, unreadable={"graphics": "no"})
    assert seen == IsolationVerdict(Isolation.CONTENDED, ("process 7 is on the device",), (7,), seen=True)
    many = verdict(dict.fromkeys((1, 2, 3, 4, 5), GIB))
    assert many.reasons == ("processes 1, 2, 3 and 2 more are on the device",)


@pytest.mark.parametrize("kind", ["compute", "graphics", "MPS"])
def test_a_list_that_cannot_be_read_attests_nothing(kind: str) -> None:
    """Of whichever kind: somebody may be in it."""
    seen = verdict({ME: GIB}, unreadable={kind: "Unknown Error (NVML error 999)"})
    assert seen.isolation == "unknown"
    assert seen.reasons == (f"the driver doesn't list {kind} processes: Unknown Error (NVML error 999)",)


def test_lists_without_us_attest_nothing() -> None:
    """Empty ones, and ones of others that have ended."""
    assert verdict({}).isolation == "unknown"
    assert "no process at all" in verdict({}).reasons[0]
    assert verdict({7: GIB}, {7: ProcessOwner.ABSENT}).reasons == (
        "this worker's process is not in the driver's lists",
    )


def test_in_a_container_memory_tells_whether_somebody_is_left_out() -> None:
    """Some drivers list the container's own processes only."""
    assert verdict({ME: GIB}, in_host_namespace=False, used=GIB + 8 * MIB).isolation == "exclusive"
    hidden = verdict({ME: GIB}, in_host_namespace=False, used=3 * GIB)
    assert hidden == IsolationVerdict(
        "unknown", ("2.0 GiB of the device are held by nobody that the driver lists in this container",), seen=True
    )
    assert verdict({ME: GIB}, in_host_namespace=False).isolation == "unknown"
    assert verdict({ME: None}, in_host_namespace=False, used=GIB).isolation == "unknown"
    absent = verdict({ME: GIB, 7: GIB}, OURS | {7: ProcessOwner.ABSENT}, in_host_namespace=False, used=2 * GIB)
    assert absent.isolation == "unknown"
    assert verdict({ME: GIB, 7: GIB}, in_host_namespace=False, used=2 * GIB).isolation == "contended"


def test_in_a_container_one_process_with_just_our_memory_is_ours() -> None:
    """By a pid of the machine's: it holds all that is in use, and we hold some of that."""
    assert (
        verdict({7: GIB}, {7: ProcessOwner.ABSENT}, in_host_namespace=False, used=GIB, own=GIB // 2).isolation
        == "exclusive"
    )
    for used, own in ((GIB, None), (GIB, 2 * GIB), (2 * GIB, GIB // 2), (GIB // 2, GIB // 4), (None, GIB // 2)):
        assert (
            verdict({7: GIB}, {7: ProcessOwner.ABSENT}, in_host_namespace=False, used=used, own=own).isolation
            == "unknown"
        )
    two = verdict({7: GIB, 8: GIB}, {7: ProcessOwner.ABSENT}, in_host_namespace=False, used=2 * GIB, own=MIB)
    assert two.isolation == "unknown", "8 may be another's pid here: nothing is concluded from it"
    assert verdict({7: GIB}, {7: ProcessOwner.ABSENT}, used=GIB, own=MIB).isolation == "unknown", "not in a container"


@dataclass(frozen=True)
class Process:
    """A process on the device as it really is."""

    pid: int
    size: int
    kind: str = "compute"
    is_inside: bool = True
    """In our pid namespace."""
    is_partner: bool = False
    has_ended: bool = False


@dataclass(frozen=True)
class Box:
    """A device and what the driver tells of it."""

    others: tuple[Process, ...]
    own_size: int
    is_container: bool
    lists_machine_pids: bool
    """In a container: the machine's pids of everybody, else the container's processes only."""
    own_machine_pid: int
    refused: frozenset[str]
    sizes_told: bool
    used_told: bool
    own_told: bool
    lists_us: bool
    overhead: int

    @property
    def has_company(self) -> bool:
        """The truth."""
        return any(not (each.is_partner or each.has_ended) for each in self.others)

    @property
    def can_be_seen(self) -> bool:
        """Whether everything that matters can be told, so that being alone must be."""
        told = self.sizes_told and self.used_told
        recognised = self.own_told if self.lists_machine_pids else True
        return not self.refused and self.lists_us and (not self.is_container or (told and recognised))

    def judged(self) -> IsolationVerdict:
        """The verdict on what the driver tells before and after a timed section. What has ended is no longer listed
        then."""
        before, after = self.look(lists_ended=True), self.look(lists_ended=False)
        return before if before.isolation != "exclusive" else after

    def look(self, *, lists_ended: bool) -> IsolationVerdict:
        """The verdict on one pass."""
        me = Process(ME, self.own_size)
        owners: dict[int, ProcessOwner] = {}
        processes: dict[int, int | None] = {}
        used = self.overhead
        for each in (me, *self.others):
            used += 0 if each.has_ended else each.size
            listed = each.kind not in self.refused and (each is not me or self.lists_us)
            listed = listed and (lists_ended or not each.has_ended)
            if self.is_container and not self.lists_machine_pids and not each.is_inside:
                listed = False
            pid = each.pid
            if self.is_container and self.lists_machine_pids:
                pid = self.own_machine_pid if each is me else each.pid + 10_000
            if listed:
                processes[pid] = each.size if self.sizes_told else None
                visible = pid == each.pid and (not self.is_container or each.is_inside)
                if each is me and pid == ME:
                    owners[pid] = ProcessOwner.OURS
                elif not visible or each.has_ended:
                    owners[pid] = ProcessOwner.ABSENT
                else:
                    owners[pid] = ProcessOwner.PARTNER if each.is_partner else ProcessOwner.STRANGER
        if self.is_container and self.lists_machine_pids and ME in processes:
            owners[ME] = ProcessOwner.OURS  # somebody's pid on the machine is ours in here
        lists = ProcessLists(processes, dict.fromkeys(self.refused, "no"), used if self.used_told else None)
        own = self.own_size - 100 * MIB if self.own_told else None
        return attest_isolation(lists, owners.__getitem__, in_host_namespace=not self.is_container, own_bytes=own)


SIZES = st.integers(UNACCOUNTED_BYTES + 40 * MIB, 80 * GIB)
KINDS = st.sampled_from(["compute", "graphics", "MPS"])


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Boxes of all kinds: mostly with one thing or another that the driver doesn't tell."""
    is_container = draw(st.booleans())
    others = tuple(
        Process(
            pid,
            draw(SIZES),
            draw(KINDS),
            is_inside=draw(st.booleans()) if is_container else True,
            is_partner=draw(st.booleans()),
            has_ended=draw(st.booleans()),
        )
        for pid in draw(st.lists(st.integers(101, 120), max_size=4, unique=True))
    )
    # A partner is a worker of ours: it is where we are.
    others = tuple(each for each in others if each.is_inside or not each.is_partner)
    return Box(
        others,
        own_size=draw(SIZES),
        is_container=is_container,
        lists_machine_pids=is_container and draw(st.booleans()),
        own_machine_pid=draw(st.sampled_from([50_000, ME])),
        refused=frozenset(draw(st.lists(KINDS, max_size=2))) if draw(st.booleans()) else frozenset(),
        sizes_told=draw(st.sampled_from([True, True, False])),
        used_told=draw(st.sampled_from([True, True, False])),
        own_told=draw(st.booleans()),
        lists_us=draw(st.sampled_from([True, True, True, False])),
        overhead=draw(st.integers(0, 30 * MIB)),
    )


def never_exclusive_in_company(box: Box) -> None:
    """What must hold of every box there can be."""
    seen = box.judged()
    if box.has_company:
        assert seen.isolation != "exclusive", box
    elif (
        box.can_be_seen
        and not any(each.has_ended for each in box.others)
        and not (box.is_container and box.lists_machine_pids and box.others)
    ):
        assert seen.isolation == "exclusive", (box, seen)
    assert (seen.isolation == "exclusive") == (not seen.reasons)


@settings(max_examples=1000, deadline=None)
@given(boxes())
def test_never_exclusive_in_company(box: Box) -> None:
    """1,000 boxes: with company never `exclusive`, alone and seen always, and a reason wherever it isn't."""
    never_exclusive_in_company(box)


@pytest.mark.campaign
@pytest.mark.timeout(0)
@settings(max_examples=20_000, deadline=None)
@given(boxes())
def test_never_exclusive_in_company_at_length(box: Box) -> None:
    """20,000 of them."""
    never_exclusive_in_company(box)
