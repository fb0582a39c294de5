"""The process: a socket, signals, and an end that finishes or refuses every request."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from temporal_vae.errors import InputError
from temporal_vae.serve.app import Service
from temporal_vae.serve.connections import Connection

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SENDING = 10  # seconds for answers that are complete
_HEARING = 5  # seconds for refusals, once nobody wants to wait any more
_BACKLOG = 512  # connections that the system holds until they are taken


def serve(service: Service, *, host: str, port: int, grace: float, started: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        service: what is served.
        host: address to listen at.
        port: number of the port; 0 for one that is free.
        grace: seconds for what is being computed when the server is asked to stop; then it is refused too.
        started: told the address, once requests are taken.

    Raises:
        InputError: the address is taken, or not of this machine.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it tells of each form that can't be read
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0].lower()
        raise InputError(f"{host}, port {port}: {reason}; choose others with --host and --port") from error
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        service.app,
        http=Connection,
        ws="none",
        log_level="warning",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(grace) + _SENDING,
    )
    server = _Server(config, service, grace, lambda: started(address))
    with listening:
        server.run([listening])


class _Server(uvicorn.Server):
    """Ends gracefully: what waits is refused at once, what is being computed has some time."""

    def __init__(
        self, config: uvicorn.Config, service: Service, grace: float, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service, self._grace, self._tell = service, grace, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; what the service has to put away it does in any case."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal ends what is being computed, and leaves little time to hear of it."""
        if self.should_exit:
            self._loop.call_soon_threadsafe(self._service.stop)
            self._loop.call_soon_threadsafe(self._loop.call_later, _HEARING, self._leave)
        else:
            self._loop.call_soon_threadsafe(self._service.close)
            self._loop.call_soon_threadsafe(self._loop.call_later, self._grace, self._service.stop)
            super().handle_exit(sig, frame)

    def _leave(self) -> None:
        self.force_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but that a process which did what the signal asked for ends well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._loop = asyncio.get_running_loop()
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
