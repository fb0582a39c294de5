"""Answers to what a client may not have: a status, and a sentence that says what to do."""

from __future__ import annotations

from http import HTTPStatus

from temporal_vae.errors import MemoryLimitError, TemporalVaeError, one_line


class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        detail: one sentence.
        retry_after: seconds after which it may be tried again.
    """

    def __init__(self, status: HTTPStatus, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def anew(self) -> Refusal:
        """The same for another thread to raise, without the frames that this one was raised through."""
        twin = type(self).__new__(type(self), *self.args)
        twin.__dict__.update(self.__dict__)
        return twin

    @classmethod
    def of(cls, error: TemporalVaeError) -> Refusal:
        """What an error of the package is to a client, whose request is at fault."""
        if not isinstance(error, MemoryLimitError):
            return cls(HTTPStatus.BAD_REQUEST, one_line(error))
        what = one_line(error).partition("; ")[0]  # then comes what who holds the model can do about it
        return too_large(
            f"{what}; send less, or start the server with more --memory-limit (half is for this)"
        )


def bad(detail: str) -> Refusal:
    """The request makes no sense."""
    return Refusal(HTTPStatus.BAD_REQUEST, detail)


def too_large(detail: str) -> Refusal:
    """The request makes sense, and is more than this server does."""
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)


def busy(detail: str, retry_after: int) -> Refusal:
    """All places are taken."""
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, detail, retry_after=retry_after)


def stopping() -> Refusal:
    """The server is about to end."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping; send this again in a while", retry_after=10
    )


def too_slow(seconds: float) -> Refusal:
    """The time limit is over."""
    return Refusal(
        HTTPStatus.GATEWAY_TIMEOUT,
        f"not done within the server's limit of {seconds:g} s; send less, or start the server with more --seconds",
    )


def gone() -> Refusal:
    """Nobody is there any more who could read an answer."""
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, "the client went away")
