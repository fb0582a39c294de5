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
        detail = f"{request.method} {request.url.path}: not here; /openapi.json lists what there is"
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
    told = [f"{_place(fault['loc'])}: {fault['msg']}" for fault in faults[:_NAMED]]
    more = f" (and {len(faults) - _NAMED} more)" if len(faults) > _NAMED else ""
    return "; ".join(told) + more


def _place(location: Sequence[Any]) -> str:
    """`shape[2]` of `("query", "shape", 2)`."""
    names = [part for part in location if part not in ("query", "body")]
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).lstrip(".")
