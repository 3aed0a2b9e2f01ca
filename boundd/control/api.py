"""The API: `create_app` puts the table of operations, what reads and what acts together."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from boundd.api import answers
from boundd.api.constants import (
    COMMITS_HEADER,
    EXPORT_FORMATS,
    HISTORY_DEFAULT,
    HISTORY_LIMIT,
    LARGEST,
    REPLAYED_HEADER,
    SHA256_HEADER,
    WAIT_DEFAULT_S,
    WAIT_LIMIT_S,
    WARNINGS_HEADER,
)
from boundd.api.operations import OPERATIONS, Operation
from boundd.control import views
from boundd.control.actions import Actions
from boundd.control.authorization import Followers, Following, Gate
from boundd.control.errors import HANDLERS, bad_request, bad_value, not_found
from boundd.control.exports import ExportText, ImportPreview, Tools
from boundd.control.idempotency import Answers, Keeping
from boundd.control.json_text import json_text
from boundd.control.openapi import openapi_json
from boundd.control.peers import AccessRules
from boundd.control.request_parsing import (
    cell_of,
    flag_of,
    integer_of,
    number_of,
    query_of,
    read_body,
)
from boundd.control.streams import OpenFileResponse, events, log_size, read_log
from boundd.core.model.attempts import CellRecord, CellState, attempt_id
from boundd.core.model.queries import Query
from boundd.ports import Service
from boundd.text import count

__all__ = ["ExportText", "ImportPreview", "create_app"]

WAIT_POLL_S = 0.1
ROWS_AT_A_TIME = 500
NO_STORE = {"Cache-Control": "no-store"}


def create_app(
    service: Service,
    *,
    render_export: Callable[[str], ExportText],
    render_metrics: Callable[[], bytes],
    import_legacy: Callable[[str, str | None], ImportPreview],
    is_stale: Callable[[CellRecord], bool] = lambda _record: False,
    rules: AccessRules | None = None,
) -> ASGIApp:
    """The API of a running daemon, for those whom the rules let in."""
    tools = Tools(render_export, render_metrics, import_legacy, is_stale)
    reads, actions = Reads(service, tools, Followers()), Actions(service, tools)
    kept = Answers(service)
    routes = [_route(each, reads, actions, kept) for each in OPERATIONS]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    # A slash too many is a 404 like any other path that there isn't, not a redirection that says nothing in JSON.
    app.router.redirect_slashes = False
    return Gate(app, rules or AccessRules.of())


def _route(doc: Operation, reads: Reads, actions: Actions, kept: Answers) -> Route:
    # A label holds slashes, so an id is a path; the routes with a suffix stand before the one without.
    path = doc.path.replace("{id}", "{id:path}")
    if doc.body is None:
        return Route(path, getattr(reads, doc.name), methods=[doc.method], name=doc.name)
    return Route(path, _posted(doc, getattr(actions, doc.name), kept), methods=[doc.method], name=doc.name)


def _posted(
    doc: Operation, act: Callable[[Any, Keeping], Awaitable[Any]], kept: Answers
) -> Callable[[Request], Awaitable[Response]]:
    assert doc.body is not None
    shape = doc.body

    async def endpoint(request: Request) -> Response:
        body = await read_body(request, shape, doc.body_limit_bytes)
        async with kept.turn(request, doc.path, body) as (keeping, given):
            if given is not None:
                headers = {**NO_STORE, REPLAYED_HEADER: "true"}
                return Response(given, media_type="application/json", headers=headers)
            reply = await act(body, keeping)
            await kept.keep(keeping, reply)
            return _json(reply)

    return endpoint


def _json(value: object, status: int = 200) -> Response:
    return Response(json_text(value), status, media_type="application/json", headers=NO_STORE)


@dataclass(frozen=True, slots=True)
class Reads:
    """Requests that change nothing."""

    service: Service
    tools: Tools
    followers: Followers

    async def status(self, request: Request) -> Response:
        """GET /v1/status."""
        return _json(views.status(self.service, query_of(self.service.state, request.query_params.getlist("q"))))

    async def cells(self, request: Request) -> Response:
        """GET /v1/cells."""
        state = self.service.state
        query = query_of(state, request.query_params.getlist("q"))
        offset = integer_of(request, "offset", 0, LARGEST) or 0
        limit = integer_of(request, "limit", 0, LARGEST)
        records = [record for record in state.matrix() if query.matches(record)]
        chosen = records[offset : None if limit is None else offset + limit]
        shown = []
        for number, record in enumerate(chosen):
            shown.append(views.cell(record, self.tools.is_stale))
            if number % ROWS_AT_A_TIME == ROWS_AT_A_TIME - 1:
                await anyio.lowlevel.checkpoint()  # a large matrix must not hold up the daemon's loop
        return _json(shown)

    async def show(self, request: Request) -> Response:
        """GET /v1/cells/{id}."""
        record = cell_of(self.service.state, request.path_params["id"])
        limit = integer_of(request, "limit", 0, HISTORY_LIMIT)
        history = await self.service.store.attempts_of(
            record.cell.key,
            limit=HISTORY_DEFAULT if limit is None else limit,
            before=integer_of(request, "before", 1, LARGEST),
        )
        state = self.service.state
        return _json(views.cell_details(state, state.cells[record.cell.key], history, self.tools.is_stale))

    async def explain(self, request: Request) -> Response:
        """GET /v1/cells/{id}/explain."""
        state = self.service.state
        return _json(views.explain(state, cell_of(state, request.path_params["id"]), self.service.clock.now()))

    async def logs(self, request: Request) -> Response:
        """GET /v1/cells/{id}/logs."""
        record = cell_of(self.service.state, request.path_params["id"])
        number = integer_of(request, "attempt", 1, LARGEST) or record.attempts
        if not 1 <= number <= record.attempts:
            made = f"it has made {count(record.attempts, 'attempt')}"
            raise not_found(f"{record.cell.label} has no attempt {number}: {made}" if number else f"{made} so far")
        identifier = attempt_id(record.cell, number)
        launcher, follow = self.service.launcher, flag_of(request, "follow")
        size = await log_size(launcher, identifier)

        def is_live() -> bool:
            return identifier in self.service.state.attempts

        if size is None and not is_live():
            raise not_found(f"the log of attempt {number} of {record.cell.label} is not kept any more")
        offset = integer_of(request, "offset", -LARGEST, LARGEST) or 0
        start = max(0, (size or 0) + offset) if offset < 0 else offset
        limit = integer_of(request, "limit", 0, LARGEST)
        if not follow:
            # What is there now: a worker that prints faster than the client reads must not make it endless.
            rest = max(0, (size or 0) - start)
            limit = rest if limit is None else min(rest, limit)
        headers = {**NO_STORE, "Boundd-Attempt": str(number), "Boundd-Offset": str(start)}
        body = read_log(launcher, identifier, start, limit, is_live if follow else None)
        if not follow:
            return StreamingResponse(body, media_type="text/plain; charset=utf-8", headers=headers)
        return self._following(request, body, "text/plain; charset=utf-8", headers)

    def _following(
        self, request: Request, body: AsyncIterator[bytes], media_type: str, headers: Mapping[str, str]
    ) -> Response:
        return Following(self.followers, request, body, media_type=media_type, headers=headers)

    async def devices(self, _request: Request) -> Response:
        """GET /v1/devices."""
        return _json(views.devices(self.service.state))

    async def plan(self, request: Request) -> Response:
        """GET /v1/plan."""
        # The simulation is a tenth of what a daemon would import before it is ready, and few ever ask for a plan.
        plans = await anyio.to_thread.run_sync(importlib.import_module, "boundd.control.plans")
        state, now = self.service.state, self.service.clock.now()
        texts = request.query_params.getlist("devices")
        if not all(texts):
            raise bad_request("devices: it is empty; say something like 4x24GiB")
        devices = plans.devices_of(texts, state)
        return _json(await anyio.to_thread.run_sync(plans.plan_reply, state, now, devices))

    async def footprints(self, _request: Request) -> Response:
        """GET /v1/footprints."""
        return _json(views.footprints(self.service.state))

    async def events(self, request: Request) -> Response:
        """GET /v1/events."""
        return self._following(request, events(self.service), "text/event-stream", NO_STORE)

    async def export(self, request: Request) -> Response:
        """GET /v1/export."""
        wanted = request.query_params.get("format", "json")
        if wanted not in EXPORT_FORMATS:
            raise bad_request(f"format: {wanted!r} is not one of {', '.join(EXPORT_FORMATS)}")
        envelope = flag_of(request, "envelope")
        rendered = await anyio.to_thread.run_sync(self.tools.render_export, wanted)
        if envelope:
            return _json(
                answers.ExportEnvelope(
                    format=wanted,
                    media_type=rendered.media_type,
                    text=rendered.text,
                    warnings=list(rendered.warnings),
                )
            )
        headers = {**NO_STORE, WARNINGS_HEADER: str(len(rendered.warnings))}
        return Response(rendered.text.encode(), media_type=rendered.media_type, headers=headers)

    async def backup(self, _request: Request) -> Response:
        """GET /v1/backup."""
        copy = await self.service.store.back_up()
        headers = {
            **NO_STORE,
            "Content-Length": str(copy.size_bytes),
            SHA256_HEADER: copy.sha256,
            COMMITS_HEADER: str(copy.commits),
        }
        return OpenFileResponse(copy.file, media_type="application/vnd.sqlite3", headers=headers)

    async def wait(self, request: Request) -> Response:
        """GET /v1/wait."""
        timeout_s = number_of(request, "timeout", WAIT_DEFAULT_S, 0.0, WAIT_LIMIT_S)
        query = query_of(self.service.state, request.query_params.getlist("q"))
        if query.states:
            raise bad_value("wait: a cell's state is what changes; name cells by their label or parameters")
        with self.followers.one_more(request):
            return _json(await self._wait(request, query, timeout_s))

    async def _wait(self, request: Request, query: Query, timeout_s: float) -> answers.WaitReply:
        reply, seen = None, None
        with anyio.move_on_after(timeout_s):
            while True:
                if (state := self.service.state) is not seen:
                    counts = views.counts(record for record in state.matrix() if query.matches(record))
                    active = counts["by_state"][CellState.PENDING] + counts["by_state"][CellState.RUNNING]
                    reply, seen = answers.WaitReply(done=active == 0, cells=counts), state
                    if reply["cells"]["total"] == 0:
                        raise not_found("no cell matches")
                    if reply["done"]:
                        break
                if await request.is_disconnected():
                    break
                await anyio.sleep(WAIT_POLL_S)
        assert reply is not None
        return reply

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        text = self.tools.render_metrics()
        return Response(text, headers={**NO_STORE, "Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def openapi(self, _request: Request) -> Response:
        """GET /openapi.json."""
        return Response(openapi_json(), media_type="application/json")

    async def healthz(self, _request: Request) -> Response:
        """GET /healthz."""
        problem = self.service.store_problem
        return _json(answers.HealthReply(ok=not problem, store_problem=problem), 503 if problem else 200)
