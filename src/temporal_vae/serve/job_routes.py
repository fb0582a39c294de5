"""Routes of jobs: send a video, watch it, fetch what came of it, call it off."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import FileResponse, JSONResponse

from temporal_vae.serve.bodies import received
from temporal_vae.serve.jobs import ENDED, Job, Jobs
from temporal_vae.serve.problems import in_words
from temporal_vae.serve.queries import JobOptions
from temporal_vae.serve.refusals import Refusal, bad

_EVERY = 0.25  # seconds between two looks at a job
_KEEP_ALIVE = 15.0  # seconds after which something is sent in any case, or proxies give up
_HARMFUL = re.compile(r"[^\w.() -]")
_LONGEST_NAME = 60  # characters, of four bytes at most
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        **JobOptions.model_json_schema()["properties"],
                    },
                }
            }
        },
    }
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
}
_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class JobRoutes:
    """The routes of the jobs of a server.

    Args:
        jobs: the jobs.
        seconds: how long an upload may take.
    """

    def __init__(self, jobs: Jobs, seconds: float) -> None:
        self._jobs, self._seconds = jobs, seconds
        self.router = router = APIRouter(prefix="/jobs", tags=["jobs"])
        router.post("", status_code=202, summary="Send a video or picture", openapi_extra=_BODY)(self.create)
        router.get("/{key}", summary="How far a job is")(self.show)
        router.get(
            "/{key}/events", summary="The same, as it goes on", responses=_STREAM, response_class=Response
        )(self.events)
        router.get("/{key}/results/{name}", responses=_FILE, response_class=Response, summary="A result")(
            self.result
        )
        router.delete("/{key}", status_code=204, summary="Cancel or remove a job", response_class=Response)(
            self.remove
        )

    async def create(self, request: Request) -> JSONResponse:
        """Take a video or picture as a form: `file`, and what is to be done with it."""
        job = await asyncio.to_thread(self._jobs.receive, int(request.headers["content-length"]))
        try:
            await received(self._receive(request, job), request, job.task, self._seconds)
        except BaseException:
            await asyncio.to_thread(self._jobs.remove, job)
            raise
        self._jobs.begin(job)
        address = f"./jobs/{job.id}"
        return JSONResponse(self._jobs.describe(job), HTTPStatus.ACCEPTED, {"Location": address})

    async def show(self, key: str) -> dict[str, Any]:
        """How far a job is, and where its results are."""
        return self._jobs.describe(self._jobs.get(key))

    async def events(self, key: str) -> Response:
        """Server-sent events `job`, each with what `GET /jobs/{key}` gives; the stream ends with the job."""
        job = self._jobs.get(key)
        return EventSourceResponse(self._watched(job), headers={"Cache-Control": "no-store"})

    async def result(self, key: str, name: str) -> Response:
        """One of the files that the job names in `results`."""
        job = self._jobs.get(key)
        path = next((path for path in job.results.values() if path.name == name), None)
        if path is None:
            have = ", ".join(path.name for path in job.results.values()) or f"nothing yet, it is {job.state}"
            raise Refusal(HTTPStatus.NOT_FOUND, f"job {key[:40]} has no {name[:40]}; it has {have}")
        shown = f"{Path(job.name).stem[:80]}.{path.name}"
        headers = {"Cache-Control": "private, no-store", "Cross-Origin-Resource-Policy": "same-origin"}
        if path.suffix == ".html":
            headers["Content-Security-Policy"] = _REPORT_POLICY
        return FileResponse(path, filename=shown, content_disposition_type="inline", headers=headers)

    async def remove(self, key: str) -> Response:
        """Cancel a job that waits or runs, and remove what there is of it."""
        await asyncio.to_thread(self._jobs.remove, self._jobs.get(key))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _receive(self, request: Request, job: Job) -> None:
        """Read the form into the folder of a job."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise bad("send a form (multipart/form-data) whose field file is a video or picture")
        try:
            async with request.form(max_files=1, max_fields=len(JobOptions.model_fields)) as form:
                job.options, upload = _options_of(form), _file_of(form)
                job.name = _short(" ".join((upload.filename or "video").split()))
                job.source = job.folder / "upload" / _harmless(job.name)
                await asyncio.to_thread(_copy, upload, job.source)
        except (
            MultiPartException,
            HTTPException,
        ) as error:  # the second is what Starlette makes of the first
            what = error.detail if isinstance(error, HTTPException) else error.message
            raise bad(
                f"the form can't be read ({what.rstrip('.').lower()}); send one file and the named fields"
            ) from error

    async def _watched(self, job: Job) -> AsyncIterator[bytes]:
        told: dict[str, Any] = {}
        silent = 0.0
        while True:
            state = job.state
            now = self._jobs.describe(job)
            if now != told:
                yield format_sse_event(event="job", data_str=json.dumps(now))
                told, silent = now, 0.0
            elif silent >= _KEEP_ALIVE:
                yield format_sse_event(comment="still here")
                silent = 0.0
            if state in ENDED:
                return
            await asyncio.sleep(_EVERY)
            silent += _EVERY


def _options_of(form: FormData) -> JobOptions:
    fields = {name: value for name, value in form.multi_items() if name != "file" and value != ""}
    try:
        return JobOptions.model_validate(fields)
    except ValidationError as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, in_words(error.errors())) from error


def _file_of(form: FormData) -> UploadFile:
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise Refusal(
            HTTPStatus.UNPROCESSABLE_ENTITY, "file: a video or picture is missing; send it in this field"
        )
    return upload


def _short(name: str) -> str:
    """A name of a client that is no longer than it needs to be, with its suffix."""
    if len(name) <= _LONGEST_NAME:
        return name
    suffix = Path(name).suffix[:10]
    return f"{name[: _LONGEST_NAME - len(suffix)]}{suffix}"


def _harmless(name: str) -> str:
    """A name of a client as one of a file here, which is no pattern, no folder and not hidden."""
    return _HARMFUL.sub("_", name).lstrip(".") or "video"


def _copy(upload: UploadFile, target: Path) -> None:
    target.parent.mkdir()
    with target.open("wb") as file:
        shutil.copyfileobj(upload.file, file, 2**20)
