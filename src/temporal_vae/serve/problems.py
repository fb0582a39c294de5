"""Every error as JSON with one sentence, for the client parses what it gets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from temporal_vae.errors import TemporalVaeError
from temporal_vae.serve.guard import refused
from temporal_vae.serve.refusals import Refusal

logger = logging.getLogger(__name__)


class Problem(BaseModel):
    """What went wrong, in one sentence that says what to do."""

    detail: str


_STATUSES = (400, 401, 403, 404, 405, 408, 411, 413, 421, 422, 429, 500, 503, 504)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in _STATUSES
}
_NAMED = 3  # faults of a request that are told
_SHOWN = 40  # characters of a value
_WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "Unable to parse input string as an integer, exceeded maximum size": "it has too many digits",
}


def _refusal(request: Request, error: Refusal) -> JSONResponse:
    return refused(error)


def _error(request: Request, error: TemporalVaeError) -> JSONResponse:
    return refused(Refusal.of(error))


def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
    return refused(Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, in_words(error.errors())))


def _http(request: Request, error: HTTPException) -> JSONResponse:
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"{request.url.path}: there is nothing here; /openapi.json lists what there is"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "other methods")
        detail = (
            f"{request.method} {request.url.path}: this path takes {allowed}; /openapi.json lists them all"
        )
    return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)


def _bug(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s", request.method, request.url.path, exc_info=error)
    detail = f"an error of the server ({type(error).__name__}), which its log tells more of; please report it"
    return JSONResponse({"detail": detail}, HTTPStatus.INTERNAL_SERVER_ERROR)


HANDLERS: dict[Any, Any] = {
    Refusal: _refusal,
    TemporalVaeError: _error,
    RequestValidationError: _validation,
    HTTPException: _http,
    Exception: _bug,
}


def in_words(faults: Sequence[Any]) -> str:
    """What pydantic finds wrong with parameters, as one sentence."""
    told = [_fault(fault) for fault in faults[:_NAMED]]
    more = f" (and {len(faults) - _NAMED} more)" if len(faults) > _NAMED else ""
    return "; ".join(told) + more


def _fault(fault: Any) -> str:
    """What is wrong with a parameter: its value, and what it has to be."""
    place, kind, message = _place(fault["loc"]), fault["type"], fault["msg"].partition(", unable")[0]
    if kind == "missing":
        return f"{place} is missing; send it as a parameter"
    if kind == "extra_forbidden":
        return f"there is no parameter {place}; /openapi.json lists those that there are"
    if kind in ("too_short", "too_long"):
        limit = "at least" if kind == "too_short" else "at most"
        most = fault["ctx"].get("min_length", fault["ctx"].get("max_length"))
        return f"{place} has {fault['ctx']['actual_length']} numbers; it has to have {limit} {most}"
    if kind == "value_error":
        message = str(fault["ctx"]["error"])
    what = message.removeprefix("Input should be ")
    needed = f"it has to be {what}" if what != message else what
    for theirs, ours in _WORDS.items():
        needed = needed.replace(theirs, ours)
    return f"{place}={_shortened(fault['input'])}: {needed}"


def _shortened(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _place(location: Sequence[Any]) -> str:
    """`shape[2]` of `("query", "shape", 2)`."""
    names = [part for part in location if part not in ("query", "body")]
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).lstrip(".")
