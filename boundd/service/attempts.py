"""Watching one attempt: from the spawn, or its adoption, to the verdict."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import anyio

from boundd.core.lifecycle.classification import Evidence, ReportedError, asks_for_output, classify
from boundd.core.model.attempts import Attempt, EndReason
from boundd.core.model.effects import Action, Note
from boundd.core.model.events import AttemptEnded, AttemptProgressed, AttemptStarted, Event, PointMeasured
from boundd.core.model.outcomes import Measurement, PointRecord, Verdict
from boundd.ports import Clock, Launcher, LaunchError, LaunchSpec, ProcessEnd
from boundd.protocol import lines
from boundd.protocol.regular_file import NotAFileError
from boundd.service import log_reading

RESULTS_INTERVAL_S = 0.25
"""How often a running worker's lines are read, for the progress that people see. Ends are acted on at once."""
RESULTS_LIMIT_BYTES = 64 * 1024**2
POINTS_LIMIT = 10_000
"""A worker that writes more than this is broken: its result is malformed, and nothing past it is read or kept."""
DISK_RETRY_S = 2.0
"""How long after a disk that failed or was full the same is tried again."""


@dataclass(slots=True)
class Collected:
    """What an attempt's result lines said so far."""

    points: int = 0
    measurement: Measurement | None = None
    error: ReportedError | None = None
    malformed: str = ""
    memory: lines.Memory | None = None
    splitter: lines.LineSplitter = field(default_factory=lines.LineSplitter)
    read_bytes: int = 0

    def add(self, attempt_id: str, data: bytes) -> list[Event]:
        """The events that more of the file makes. After a malformed line nothing more is believed."""
        self.read_bytes += len(data)
        points: list[Event] = []
        progress: Event | None = None
        try:
            for text in self.splitter.feed(data):
                event = self._line(attempt_id, lines.parse_line(text))
                if isinstance(event, AttemptProgressed):
                    progress = event  # of many only the last one says where it is
                elif event is not None:
                    points.append(event)
            self._check_size()
        except lines.MalformedLineError as error:
            self.malformed = self.malformed or str(error)
        return points if progress is None else [*points, progress]

    def _check_size(self) -> None:
        """Hold the worker to what a result may be.

        Raises:
            MalformedLineError: it is more.
        """
        if len(self.splitter.rest) > lines.MAX_LINE_BYTES:
            raise lines.MalformedLineError(f"a line of more than {lines.MAX_LINE_BYTES:,} bytes")
        if self.read_bytes >= RESULTS_LIMIT_BYTES:
            raise lines.MalformedLineError(f"more than {RESULTS_LIMIT_BYTES:,} bytes of results")

    def _line(self, attempt_id: str, line: lines.Line) -> Event | None:
        if self.malformed:
            return None
        match line:
            case lines.Progress():
                return AttemptProgressed(attempt_id, line.done, line.total)
            case lines.Point():
                if self.points == POINTS_LIMIT:
                    raise lines.MalformedLineError(f"more than {POINTS_LIMIT:,} points")
                self.points += 1
                point = PointRecord(line.parameters, line.speedup, line.score_loss, line.isolation, line.extra)
                return PointMeasured(attempt_id, self.points - 1, point)
            case lines.Memory():
                self.memory = line
            case lines.Result():
                self.measurement = Measurement(
                    line.max_speedup,
                    line.max_speedup_within_tolerance,
                    line.best,
                    line.isolation,
                    details=line.extra,
                )
            case lines.Error():
                kind = line.error
                subject = line.extra.get("subject")
                self.error = ReportedError(
                    kind,
                    line.message,
                    line.phase,
                    line.requested_bytes,
                    line.free_bytes,
                    subject if isinstance(subject, str) else "",
                )
        return None


class AttemptWatcher:
    """Starts attempts, follows their result lines and turns their ends into verdicts."""

    def __init__(
        self,
        launcher: Launcher,
        clock: Clock,
        submit: Callable[[Event], Awaitable[None]],
        attempt_now: Callable[[str], Attempt],
        tell: Callable[[Note], None],
        *,
        from_stdout: bool,
        attest: Callable[[str], Awaitable[str]],
        pattern: str = "",
    ) -> None:
        self._launcher = launcher
        self._clock = clock
        self._submit = submit
        self._attempt_now = attempt_now
        self._tell = tell
        self._from_stdout = from_stdout
        self._attest = attest
        self._pattern = pattern

    async def run(self, attempt_id: str, make_spec: Callable[[], LaunchSpec]) -> None:
        """Start an attempt and see it to its end. `make_spec` may raise an OSError: it makes folders.

        A disk that is full or fails is no fault of the cell: the same attempt is started once it can be.
        """
        told = False
        while True:
            try:
                await self._launcher.launch(make_spec())
            except (LaunchError, OSError) as error:
                attempt = self._attempt_now(attempt_id)
                if isinstance(error, LaunchError) and not error.transient:
                    await self._submit(AttemptEnded(attempt_id, self._verdict_of_no_start(str(error), error.errno)))
                    return
                if attempt.end_reason is not None:
                    ended = Evidence(ended_on_request=True)
                    await self._submit(AttemptEnded(attempt_id, classify(ended, self._clock.now().unix_s)))
                    return
                if not told:
                    self._tell(_disk_problem(attempt, "it can't be started yet", error))
                    told = True
                await anyio.sleep(DISK_RETRY_S)
            else:
                break
        await self.adopt(attempt_id)

    async def adopt(self, attempt_id: str) -> None:
        """See an attempt that runs, or ended while no daemon did, to its end.

        Where its files can't be read, that is told, and tried again: what an attempt left is not lost for it.
        """
        told = False
        while True:
            try:
                return await self._supervise(attempt_id)
            except OSError as error:
                if not told:
                    self._tell(_disk_problem(self._attempt_now(attempt_id), "its files can't be read now", error))
                    told = True
                await anyio.sleep(DISK_RETRY_S)

    async def _supervise(self, attempt_id: str) -> None:
        if self._launcher.is_alive(attempt_id):
            await self._submit(AttemptStarted(attempt_id))
        if self._attempt_now(attempt_id).end_reason is not None:
            await self._launcher.end(attempt_id)
        collected = Collected()
        failures: list[OSError] = []
        async with anyio.create_task_group() as group:
            group.start_soon(self._follow, attempt_id, collected)
            try:
                end = await self._launcher.wait(attempt_id)
            except OSError as error:
                # As an exception of the group it would be wrapped.
                failures.append(error)
            group.cancel_scope.cancel()
        if failures:
            raise failures[0]
        collected = await self._read_to_the_end(attempt_id, collected, end)
        await self._submit(AttemptEnded(attempt_id, await self._verdict(attempt_id, end, collected)))

    async def _follow(self, attempt_id: str, collected: Collected) -> None:
        while True:
            await anyio.sleep(RESULTS_INTERVAL_S)
            # Once it has ended all is read, whatever this could not.
            with suppress(OSError):
                await self._read_more(attempt_id, collected)

    async def _read_more(self, attempt_id: str, collected: Collected) -> None:
        """Read on to the end of the results, a chunk at a time, and submit what they say."""
        more = True
        while more:
            # Reading and submitting what was read are one unit: a cancelled half would lose the lines in between.
            with anyio.CancelScope(shield=True):
                more = await self._read_chunk(attempt_id, collected, RESULTS_LIMIT_BYTES, only_while_alive=True)

    async def _read_chunk(
        self,
        attempt_id: str,
        collected: Collected,
        until_bytes: int,
        *,
        tell: bool = True,
        only_while_alive: bool = False,
    ) -> bool:
        """Whether there may be more to be read below `until_bytes`; nothing is after a malformed line.

        With `only_while_alive`, only what is there before the worker has ended is taken: what it left behind may go on
        writing while it is being ended, and how much of the file is the worker's is in the outcome.
        """
        if collected.malformed:
            return False
        left = until_bytes - collected.read_bytes

        try:
            data = await self._launcher.read_results(
                attempt_id, collected.read_bytes, min(left, log_reading.CHUNK_BYTES), only_while_alive=only_while_alive
            )
        except NotAFileError as error:
            collected.malformed = str(error)
            return False
        for event in collected.add(attempt_id, data):
            if tell:
                await self._submit(event)
        return 0 < len(data) < left

    async def _read_to_the_end(self, attempt_id: str, collected: Collected, end: ProcessEnd) -> Collected:
        """All that the worker wrote; what something else appended after its end doesn't count."""
        until_bytes = RESULTS_LIMIT_BYTES if end.results_bytes is None else end.results_bytes
        if collected.read_bytes > until_bytes:
            # Some of that has been read already: once more, without telling twice what has been told.
            collected = Collected()
            while await self._read_chunk(attempt_id, collected, until_bytes, tell=False):
                pass
        while await self._read_chunk(attempt_id, collected, until_bytes):
            pass
        return collected

    async def _verdict(self, attempt_id: str, end: ProcessEnd, collected: Collected) -> Verdict:
        # Of a worker that attests nothing itself: the last look at who is on its device comes after its end.
        unattested = await self._attest(attempt_id) if self._from_stdout and end.exit_status == 0 else ""
        attempt = self._attempt_now(attempt_id)
        memory = collected.memory
        evidence = Evidence(
            exit_status=end.exit_status,
            signal=end.signal,
            timed_out=end.timed_out,
            ended_on_request=end.ended_on_request or attempt.end_reason is EndReason.CANCEL,
            start_error=end.start_error,
            start_errno=end.start_errno,
            start_about=end.start_about,
            start_subject=end.start_subject,
            lost=end.lost or _ended_by_others(end, attempt) or self._output_lost(end),
            wall_s=end.wall_s,
            timeout_s=attempt.timeout_s,
            lease_waited_s=end.lease_waited_s,
            fetched_s=end.fetched_s,
            measurement=collected.measurement,
            worker_error=collected.error,
            malformed=collected.malformed,
            host_memory=end.host_memory,
            host_memory_own=end.host_memory_own,
            from_stdout=self._from_stdout,
            tolerance=_tolerance_of(attempt) if self._from_stdout else None,
            ran_alone=not attempt.had_company,
            foreign_seen=attempt.foreign_seen,
            unattested=unattested,
            peak_allocated_bytes=memory.peak_allocated_bytes if memory else None,
            peak_reserved_bytes=memory.peak_reserved_bytes if memory else None,
            host_peak_bytes=_host_peak_bytes(memory),
        )
        if asks_for_output(evidence):
            log = await log_reading.read_log(self._launcher, attempt_id)
            # The lines of somebody's own script, where they are the result.
            printed = (
                await log_reading.read_script_results(self._launcher, attempt_id, self._pattern)
                if self._from_stdout
                else None
            )
            evidence = replace(evidence, log_text=log, printed=printed)
        verdict = classify(evidence, self._clock.now().unix_s)
        if verdict.host_peak_bytes is None:
            # The worker knows better: its cgroup's peak has the page cache of every file that it read in it.
            verdict = replace(verdict, host_peak_bytes=end.host_peak_bytes)
        return verdict

    def _output_lost(self, end: ProcessEnd) -> str:
        """Why an attempt is lost whose output is its result, and did not get to the disk; empty where it did."""
        if self._from_stdout and end.output_lost and end.exit_status == 0:
            return "the disk did not take the last of what it printed, in which its result may have been"
        return ""

    def _verdict_of_no_start(self, why: str, number: int | None) -> Verdict:
        evidence = Evidence(start_error=why, start_errno=number, start_about="launcher", wall_s=0.0)
        return classify(evidence, self._clock.now().unix_s)


def _disk_problem(attempt: Attempt, what: str, error: Exception) -> Note:
    message = f"attempt {attempt.number} of {attempt.label}: {what}, and that is tried again: {error}. See to the disk."
    return Note(Action.DISK_PROBLEM, message, "error", cell=attempt.label, attempt=attempt.id, device=attempt.device)


def _ended_by_others(end: ProcessEnd, attempt: Attempt) -> str:
    """Why an attempt is lost that its shim was told to end, but not by boundd; empty where that is not so."""
    if end.ended_on_request and attempt.end_reason is None:
        return "somebody else told its shim to end, as a machine that is shut down does"
    return ""


def _tolerance_of(attempt: Attempt) -> float | None:
    """The score loss that the attempt's cell allows, where one of its parameters says so."""
    told = json.loads(attempt.key).get("tolerance")
    return float(told) if isinstance(told, (int, float)) and not isinstance(told, bool) else None


def _host_peak_bytes(memory: lines.Memory | None) -> int | None:
    """What the worker said of its own resident memory; None where it said nothing, or no size."""
    said = memory.extra.get("host_peak_bytes") if memory is not None else None
    return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else None
