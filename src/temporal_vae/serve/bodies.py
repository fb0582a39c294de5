"""Bodies on their way: waited for as long as a request may take, and no longer than the server takes requests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from math import ceil
from time import monotonic
from typing import Any

from starlette.requests import ClientDisconnect, Request

from temporal_vae.serve.desk import Task
from temporal_vae.serve.refusals import Refusal, gone

_LOOKED_AT = 0.2  # seconds between two looks at whether anybody still wants it


async def received(reading: Coroutine[Any, Any, None], request: Request, task: Task, seconds: float) -> None:
    """Read a body.

    Args:
        reading: does so.
        request: whose body it is.
        task: called off where the server stops meanwhile.
        seconds: that it may take.

    Raises:
        Refusal: it came too slowly, or not as a whole, or the server stops.
    """
    end, body = monotonic() + seconds, asyncio.ensure_future(reading)
    try:
        while not body.done():
            task.check()
            if (left := end - monotonic()) <= 0:
                length = int(request.headers["content-length"])
                raise Refusal(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the body came too slowly, not all of {length:,} bytes within {ceil(seconds)} s; "
                    "send less, or over a faster line",
                )
            await asyncio.wait({body}, timeout=min(left, _LOOKED_AT))
        body.result()
    except ClientDisconnect:
        raise gone() from None
    finally:
        body.cancel()
