"""Errors of the API, as JSON: `{"error": {"type": …, "message": …}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from boundd.core.model.queries import QueryError
from boundd.ports import StoreBusyError, StoreError


class ApiError(Exception):
    """The client's: a request that can't be done as it was asked. `details` go into the error beside the message."""

    def __init__(self, status: int, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.details = details


def bad_request(message: str) -> ApiError:
    """A request that the API's document doesn't allow."""
    return ApiError(400, "bad_request", message)


def bad_value(message: str) -> ApiError:
    """A request that is well formed, and means nothing here."""
    return ApiError(400, "bad_value", message)


def not_found(message: str) -> ApiError:
    """A request for something that there isn't."""
    return ApiError(404, "not_found", message)


def error_response(
    status: int, kind: str, message: str, details: Mapping[str, Any] | None = None, headers: Any = None
) -> Response:
    """The error as a response. Text that isn't UTF-8 came from a client: it is shown escaped."""
    clean = message.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": {"type": kind, "message": clean, **(details or {})}}, status, headers=headers)


async def on_api_error(_request: Request, error: Exception) -> Response:
    """An `ApiError`."""
    assert isinstance(error, ApiError)
    return error_response(error.status, error.kind, error.message, error.details)


async def on_query_error(_request: Request, error: Exception) -> Response:
    """A `QueryError`."""
    assert isinstance(error, QueryError)
    return error_response(400, "bad_query", str(error))


async def on_store_busy(_request: Request, error: Exception) -> Response:
    """A `StoreBusyError`: nothing has changed, and the same request may do later."""
    assert isinstance(error, StoreBusyError)
    return error_response(503, "store_busy", f"nothing was changed: {error}", headers={"Retry-After": "5"})


async def on_store_error(_request: Request, error: Exception) -> Response:
    """A `StoreError`: what was asked for is damaged. The message says what to do."""
    assert isinstance(error, StoreError)
    return error_response(500, "store_damaged", str(error))


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """No such route, or not this method."""
    assert isinstance(error, HTTPException)
    kinds = {404: "not_found", 405: "method_not_allowed"}
    return error_response(error.status_code, kinds.get(error.status_code, "http"), error.detail, headers=error.headers)


async def on_bug(_request: Request, error: Exception) -> Response:
    """Ours. The server logs the traceback; the client is told no more than what kind of error it was."""
    return error_response(500, "internal", f"an error of boundd's own ({type(error).__name__}); its log has more")


HANDLERS: dict[Any, Any] = {
    ApiError: on_api_error,
    QueryError: on_query_error,
    StoreBusyError: on_store_busy,
    StoreError: on_store_error,
    HTTPException: on_http_exception,
    Exception: on_bug,
}
