"""Requests that change something: each finds out whom it means, submits one event, and says whom it affected.

Between the first and the last something else may happen: an attempt ends, another person is quicker. So whom it
affected is told by the state that the event was applied to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import anyio

from boundd.api import answers, requests
from boundd.control.errors import ApiError, bad_value
from boundd.control.exports import Tools
from boundd.control.idempotency import Keeping
from boundd.control.request_parsing import device_of, query_of
from boundd.core.lifecycle.step import step
from boundd.core.model import wording
from boundd.core.model.attempts import CellRecord, CellState
from boundd.core.model.events import (
    CancelRequested,
    CordonRequested,
    Event,
    ImportRequested,
    PauseRequested,
    ResumeRequested,
    RetryRequested,
    UncordonRequested,
)
from boundd.core.model.queries import Query
from boundd.core.model.reasons import PlainWait
from boundd.core.model.records import Record
from boundd.core.model.state import State
from boundd.core.model.transitions import ENDED_CELL_STATES
from boundd.core.scheduler.placement import Placement
from boundd.core.scheduler.refusals import best_placement
from boundd.ports import ConfigError, Service, StoreBusyError
from boundd.text import size

_Reply = TypeVar("_Reply")
SELECTED_STATES = {
    "oom": (CellState.OUT_OF_MEMORY,),
    "timeout": (CellState.TIMED_OUT,),
    "failed": (CellState.FAILED, CellState.LOST),
}
ACTIVE_STATES = (CellState.PENDING, CellState.RUNNING)
FORESEEN_CELLS = 200
"""So many cells are told what would be reserved for them: asking every device for every cell of a large matrix would
hold up the daemon."""


@dataclass(frozen=True, slots=True)
class Actions:
    """What can be done to a run."""

    service: Service
    tools: Tools

    async def _submit(self, event: Event, keeping: Keeping, answer: Callable[[State], _Reply]) -> _Reply:
        """Apply an event; its answer, made of the state that it was applied to, and kept with it."""
        made: list[_Reply] = []

        def keep(before: State) -> Sequence[Record]:
            made.append(answer(before))
            return keeping.records(made[-1])

        await self.service.submit(event, keep)
        return made[-1]

    async def retry(self, body: requests.RetryRequest, keeping: Keeping) -> answers.RetryReply:
        """Put cells back that have ended."""
        state = self.service.state
        query = query_of(state, body.query)
        records = [record for record in state.matrix() if query.matches(record) and self._wants(record, body, query)]
        without = [record.cell.label for record in records if record.cell.batch_size is None]
        if body.batch_size is not None and without:
            raise bad_value(f"batch_size: {without[0]!r} has no parameter batch_size to be changed")
        event = RetryRequested(tuple(record.cell.key for record in records), body.batch_size)
        if body.dry_run or not records:
            return self._retried(event, state, dry_run=body.dry_run)
        return await self._submit(event, keeping, partial(self._retried, event, dry_run=False))

    def _retried(self, event: RetryRequested, before: State, *, dry_run: bool) -> answers.RetryReply:
        """Whom the event affects in this state, and what then becomes of them."""
        records = [record for record in map(before.cells.__getitem__, event.keys) if record.state in ENDED_CELL_STATES]
        after, _ = step(before, event, self.service.clock.now())
        cells = [
            answers.RetryCell(
                label=record.cell.label,
                state=record.state.value,
                batch_size=after.cells[record.cell.key].wanted_batch_size,
                note=_foresee(after, after.cells[record.cell.key]) if number < FORESEEN_CELLS else "",
            )
            for number, record in enumerate(records)
        ]
        return answers.RetryReply(dry_run=dry_run, affected=[cell["label"] for cell in cells], cells=cells)

    def _wants(self, record: CellRecord, body: requests.RetryRequest, query: Query) -> bool:
        if body.selector == "stale":
            return record.state is CellState.SUCCEEDED and self.tools.is_stale(record)
        if body.selector is not None:
            return record.state in SELECTED_STATES[body.selector]
        if record.state is CellState.SUCCEEDED:
            # A good result is only thrown away where it was asked for by name.
            return CellState.SUCCEEDED in query.states
        return record.state in ENDED_CELL_STATES

    async def cancel(self, body: requests.CancelRequest, keeping: Keeping) -> answers.AffectedReply:
        """Cancel what is pending, and end what is running."""
        state = self.service.state
        query = query_of(state, body.query)
        records = [record for record in state.matrix() if record.state in ACTIVE_STATES and query.matches(record)]
        event = CancelRequested(tuple(record.cell.key for record in records))
        if body.dry_run or not records:
            return _cancelled(event, state, dry_run=body.dry_run)
        return await self._submit(event, keeping, partial(_cancelled, event, dry_run=False))

    async def pause(self, _body: requests.Empty, keeping: Keeping) -> answers.PausedReply:
        """Hold new attempts back."""
        if self.service.state.paused:
            return answers.PausedReply(paused=True, changed=False)
        return await self._submit(
            PauseRequested(), keeping, lambda before: answers.PausedReply(paused=True, changed=not before.paused)
        )

    async def resume(self, _body: requests.Empty, keeping: Keeping) -> answers.PausedReply:
        """Start new attempts again."""
        if not self.service.state.paused:
            return answers.PausedReply(paused=False, changed=False)
        return await self._submit(
            ResumeRequested(), keeping, lambda before: answers.PausedReply(paused=False, changed=before.paused)
        )

    async def cordon(self, body: requests.CordonRequest, keeping: Keeping) -> answers.AffectedReply:
        """Take a device out of service; what runs there goes on."""
        device = device_of(self.service.state, body.device)
        event = CordonRequested(device.uuid, body.reason)
        return await self._submit(
            event,
            keeping,
            lambda before: answers.AffectedReply(dry_run=False, affected=list(before.with_instances(device.uuid))),
        )

    async def uncordon(self, body: requests.UncordonRequest, keeping: Keeping) -> answers.AffectedReply:
        """Put a device back into service."""
        device = device_of(self.service.state, body.device)
        state = self.service.state
        if not any(state.devices[uuid].quarantine for uuid in state.with_instances(device.uuid)):
            return answers.AffectedReply(dry_run=False, affected=[])
        event = UncordonRequested(device.uuid)
        return await self._submit(event, keeping, partial(_uncordoned, event))

    async def import_(self, body: requests.ImportRequest, keeping: Keeping) -> answers.ImportReply:
        """Take over what an old file knew of cells that have not run here."""
        try:
            preview = await anyio.to_thread.run_sync(self.tools.import_legacy, body.text, body.model)
        except ValueError as error:
            raise bad_value(str(error)) from None
        if preview.ambiguous:
            models_named = f" ({', '.join(preview.models)})" if preview.models else ""
            message = (
                f"{len(preview.ambiguous)} entries could be of more than one model; say which with --model"
                f"{models_named}. The first: {preview.ambiguous[0]}"
            )
            raise ApiError(
                409, "ambiguous", message, ambiguous=list(preview.ambiguous[:100]), models=list(preview.models)
            )
        state = self.service.state
        known = tuple(entry for entry in preview.entries if entry.key in state.cells)

        def imported(before: State) -> answers.ImportReply:
            records = [before.cells[entry.key] for entry in known]
            return answers.ImportReply(
                affected=[record.cell.label for record in records if record.state is CellState.PENDING],
                kept=[record.cell.label for record in records if record.state is not CellState.PENDING],
                unmatched=list(preview.unmatched),
            )

        reply = imported(state)
        return await self._submit(ImportRequested(known), keeping, imported) if reply["affected"] else reply

    async def reload(self, _body: requests.Empty, _keeping: Keeping) -> answers.ReloadReply:
        """Read the config anew, all or nothing. Doing it twice does no harm; its answer is kept afterwards."""
        try:
            return answers.ReloadReply(changes=await self.service.reload())
        except ConfigError as error:
            raise ApiError(400, "config", str(error), errors=list(error.errors)) from None

    async def shutdown(self, body: requests.ShutdownRequest, keeping: Keeping) -> answers.ShutdownReply:
        """Begin to end the daemon; the answer comes before it has ended."""
        live = len(self.service.state.attempts)
        reply = answers.ShutdownReply(stopping=True, end_workers=body.end_workers, live_attempts=live)
        # Store the answer first, or the next daemon would obey a repeated request; but a full disk must not prevent it.
        with contextlib.suppress(StoreBusyError):
            await self.service.store.commit(keeping.records(reply))
        self.service.request_stop(end_workers=body.end_workers)
        return reply


def _cancelled(event: CancelRequested, before: State, *, dry_run: bool) -> answers.AffectedReply:
    """Whom the event affects in this state: who has ended by then was not cancelled."""
    records = [record for record in map(before.cells.__getitem__, event.keys) if record.state in ACTIVE_STATES]
    return answers.AffectedReply(dry_run=dry_run, affected=[record.cell.label for record in records])


def _uncordoned(event: UncordonRequested, before: State) -> answers.AffectedReply:
    uuids = before.with_instances(event.device)
    return answers.AffectedReply(
        dry_run=False, affected=[uuid for uuid in uuids if before.devices[uuid].quarantine is not None]
    )


def _foresee(state: State, record: CellRecord) -> str:
    """What would be reserved for the cell as things stand, or why nothing could be."""
    answer = best_placement(state, record, {})
    if isinstance(answer, Placement):
        alone = ", alone" if answer.exclusive else ""
        return f"would reserve {size(answer.reservation_bytes)} on {_name(state, answer.device)}{alone}"
    if not answer:
        return wording.wait(PlainWait.NO_DEVICE)
    return "waits: " + "; ".join(f"{_name(state, no.device)}: {wording.no_room(no)}" for no in answer)


def _name(state: State, uuid: str) -> str:
    return wording.device_name(state.devices[uuid].reading)
