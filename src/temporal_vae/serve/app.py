"""The service: routes, and what starts and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from time import monotonic
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Match

from temporal_vae import __version__
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.outputs import scratch_folder, temporary_name
from temporal_vae.serve.bodies import received
from temporal_vae.serve.coding import MIME, Call, Coding
from temporal_vae.serve.counters import Counters
from temporal_vae.serve.description import describe_machine, describe_model
from temporal_vae.serve.desk import Desk, Place
from temporal_vae.serve.guard import Guard
from temporal_vae.serve.job_routes import JobRoutes
from temporal_vae.serve.jobs import Job, Jobs
from temporal_vae.serve.page import Page
from temporal_vae.serve.problems import HANDLERS, PROBLEMS
from temporal_vae.serve.queries import DecodeQuery, EncodeQuery
from temporal_vae.serve.reconstruction import Reconstruction
from temporal_vae.serve.refusals import bad, too_slow
from temporal_vae.serve.settings import Settings
from temporal_vae.serve.tensors import TENSOR

_METHODS = ["DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_TENSOR_BODY = {"requestBody": {"required": True, "content": {TENSOR: _BINARY}}}
_DECODED: dict[int | str, dict[str, Any]] = {
    200: {"content": dict.fromkeys((TENSOR, *MIME.values(), "video/mp4"), _BINARY)}
}
_ENCODED: dict[int | str, dict[str, Any]] = {200: {"content": {TENSOR: _BINARY}}}


class Service:
    """One model behind HTTP.

    Args:
        vae: the model, ready for inference. Nobody else changes it meanwhile.
        settings: limits and token.

    Attributes:
        app: the ASGI application.
        desk: who waits and what is computed.
        jobs: videos that people sent.
    """

    def __init__(self, vae: Autoencoder, settings: Settings) -> None:
        self.settings = settings
        self.desk = Desk(places=settings.queue, held_limit=settings.held_limit)
        self._vae, self._coding = vae, Coding(vae, settings.compute_limit)
        self._counters = Counters(self.desk)
        self._folder = temporary_name(settings.folder.absolute() / "temporal-vae-jobs")
        self.jobs = Jobs(self._folder, settings, self._reconstruct, self._counters.count_job)
        self._reconstruction = Reconstruction(vae, self.desk, settings, self.jobs.check_room)
        self._page = Page()
        self._about = {
            "version": __version__,
            "model": describe_model(self._vae),
            "limits": {
                "memory": self.settings.memory_limit,
                "compute": self.settings.compute_limit,
                "body": self.settings.body_limit,
                "queue": self.settings.queue,
                "seconds": self.settings.seconds,
                "jobs": self.settings.jobs,
                "results_seconds": self.settings.results_seconds,
            },
            "machine": describe_machine(self._vae),
        }
        self.app = FastAPI(
            title="temporal-vae",
            version=__version__,
            summary="The autoencoder of Stable Video Diffusion behind HTTP.",
            docs_url=None,  # its page loads scripts from elsewhere
            redoc_url=None,
            lifespan=self._lifespan,
            responses=PROBLEMS,
        )
        self._add_routes()
        self.app.add_middleware(Guard, settings=settings, counters=self._counters, is_open=self._is_open)
        if settings.origins:  # the last one added comes first: questions of browsers carry no token
            self.app.add_middleware(
                CORSMiddleware,
                allow_origins=settings.origins,
                allow_methods=_METHODS,
                allow_headers=["*"],
                expose_headers=["shape", "dtype", "Retry-After", "Location"],
            )
        for kind, handler in HANDLERS.items():
            self.app.add_exception_handler(kind, handler)

    def warm_up(self) -> None:
        """Compile what the first request would wait for."""
        self._coding.warm_up()

    def close(self) -> None:
        """Refuse what waits and what comes; what is being computed goes on."""
        self.desk.close()
        self.jobs.close()

    def stop(self) -> None:
        """Refuse what is being computed, too."""
        self.desk.call_off()
        self.jobs.call_off()

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        with scratch_folder(self._folder):
            yield
            await asyncio.to_thread(self.jobs.end)
            await asyncio.to_thread(self.desk.end)

    def _reconstruct(self, job: Job) -> None:
        self._reconstruction(job)

    def _is_open(self, path: str) -> bool:
        return path == "/healthz" or self._page.has(path)

    def _add_routes(self) -> None:
        decode: dict[str, Any] = {
            "responses": _DECODED,
            "response_class": Response,
            "openapi_extra": _TENSOR_BODY,
        }
        self.app.post("/decode", summary="Latents to pictures", **decode)(self.decode)
        self.app.post("/", summary="As /decode", operation_id="decode_at_root", **decode)(self.decode)
        self.app.post(
            "/encode",
            summary="Pixels to latents",
            responses=_ENCODED,
            response_class=Response,
            openapi_extra={"requestBody": {"required": True, "content": {"*/*": _BINARY}}},
        )(self.encode)
        self.app.get("/healthz", summary="Whether requests are taken")(self.health)
        self.app.get("/metrics", summary="Figures for Prometheus", response_class=Response)(self.metrics)
        self.app.get("/info", summary="Which model, which limits")(self.info)
        self.app.include_router(JobRoutes(self.jobs, self.settings.seconds).router)
        self.app.api_route("/{path:path}", methods=_METHODS, include_in_schema=False)(self.elsewhere)

    async def decode(self, request: Request, query: Annotated[DecodeQuery, Query()]) -> Response:
        """Decode a tensor of latents, as `diffusers.utils.remote_utils.remote_decode` sends it."""
        deadline = self._deadline()
        wants_tensor = TENSOR in request.headers.get("accept", "")
        call = await asyncio.to_thread(self._coding.decode, query, wants_tensor=wants_tensor)
        return await self._tensor_answered(request, call, deadline)

    async def encode(self, request: Request, query: Annotated[EncodeQuery, Query()]) -> Response:
        """Encode a tensor of pixels or an image, as `diffusers.utils.remote_utils.remote_encode` sends it."""
        deadline = self._deadline()
        if query.shape is not None or query.dtype is not None:
            call = await asyncio.to_thread(self._coding.encode, query)
            return await self._tensor_answered(request, call, deadline)
        length = _length(request)
        place = self.desk.take(held=length, work=0)
        try:
            body = await self._read(request, place, deadline)
            call = await asyncio.to_thread(self._coding.encode_picture, query, body)
        finally:
            place.release()
        return await self._answered(
            request, call, body, self.desk.take(held=call.held, work=call.work), deadline
        )

    async def health(self) -> JSONResponse:
        """Whether requests are taken."""
        closed = self.desk.closed
        return JSONResponse({"status": "stopping" if closed else "ok"}, 503 if closed else 200)

    async def metrics(self) -> Response:
        """Figures for Prometheus."""
        return Response(self._counters.text(), media_type=Counters.content_type)

    async def elsewhere(self, request: Request) -> Response:
        """A file of the page, or the reason why there is none."""
        found = self._page.response(request.url.path) if request.method == "GET" else None
        if found is not None:
            return found
        others = [route for route in self.app.routes if route.matches(request.scope)[0] is Match.PARTIAL]
        allowed = {method for route in others for method in getattr(route, "methods", None) or ()}
        allowed |= {"GET"} if self._page.has(request.url.path) else set()
        if allowed:
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(sorted(allowed))})
        raise HTTPException(HTTPStatus.NOT_FOUND)

    async def info(self) -> dict[str, Any]:
        """Which model this is, what it allows, and what it runs on."""
        return self._about

    def _deadline(self) -> float:
        return monotonic() + self.settings.seconds

    async def _tensor_answered(self, request: Request, call: Call, deadline: float) -> Response:
        """Take a place, read a body of the length that the parameters tell, compute and answer."""
        length = _length(request)
        if length != call.body:
            raise bad(
                f"a body of {length:,} bytes; shape and dtype make {call.body:,}: send the tensor whole and contiguous"
            )
        place = self.desk.take(held=call.held, work=call.work)
        try:
            body = await self._read(request, place, deadline)
        except BaseException:
            place.release()
            raise
        return await self._answered(request, call, body, place, deadline)

    async def _read(self, request: Request, place: Place, deadline: float) -> bytearray:
        """The body, which is as long as its header tells; refused where the server stops before it is there."""
        body = bytearray()

        async def read() -> None:
            async for piece in request.stream():
                body.extend(piece)

        await received(read(), request, place.task, deadline - monotonic())
        return body

    async def _answered(
        self, request: Request, call: Call, body: bytearray, place: Place, deadline: float
    ) -> Response:
        """Compute in turn; the place is given back when the answer is sent, or nobody wants it any more."""
        try:
            answer = await self.desk.compute(
                place,
                lambda: call.answer(body),
                seconds=deadline - monotonic(),
                late=too_slow(self.settings.seconds),
                left=_disconnected(request),
            )
        except BaseException:
            place.release_when_done()
            raise
        answer.place, answer.seconds = place, self.settings.seconds
        return answer


def _length(request: Request) -> int:
    """Bytes of the body, which the guard has seen to be told."""
    return int(request.headers["content-length"])


async def _disconnected(request: Request) -> None:
    """Returns when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
