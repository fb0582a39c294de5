"""The service against its own OpenAPI document: what that never says is answered, never is."""

from math import prod

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

REPRODUCIBLE = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
CHANNELS = {"POST /": 8, "POST /decode": 8, "POST /encode": 3}
schemathesis.serializer.alias(["tensor/binary", "*/*"], "application/octet-stream")


def try_all(server, examples):
    """Requests of every operation, valid and not; the statuses that they got, by operation."""
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {
        result.ok().label: {
            status for mode in schemathesis.GenerationMode for status in tried(result.ok(), mode, examples)
        }
        for result in document.get_all_operations()
    }


def tried(operation, mode, examples):
    """Check each answer to some requests against the document; the statuses that there were."""
    statuses = set()

    @settings(REPRODUCIBLE, max_examples=examples)
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        if mode == schemathesis.GenerationMode.POSITIVE and operation.label in CHANNELS:
            make_whole(case, CHANNELS[operation.label])
        statuses.add(
            case.call_and_validate(timeout=60, excluded_checks=unknowable(operation, mode)).status_code
        )

    try:
        check()
    except Unsatisfiable:  # nothing can be wrong with a request that has no parameters
        assert mode == schemathesis.GenerationMode.NEGATIVE
    return statuses


def unknowable(operation, mode):
    """Checks that ask for more than the document can say.

    It has no words for a body of as many bytes as a shape makes, so what it allows may well be refused; a body that
    this test made is none that schemathesis holds for valid; an empty field of a form is one that was not filled in.
    """
    if mode == schemathesis.GenerationMode.POSITIVE:
        return [positive_data_acceptance, negative_data_rejection]
    return [negative_data_rejection] if operation.label == "POST /jobs" else []


def make_whole(case, channels):
    """Give a request the tensor of a picture in place of one of any shape; its other parameters stay."""
    if case.query and isinstance(case.query.get("shape"), list):
        by_clips = len(case.query["shape"]) == 5
        case.query.setdefault("dtype", "float32")
        case.query["shape"] = shape = [1, channels, *([1] if by_clips else []), 4, 8]
        case.body = bytes(prod(shape) * (4 if case.query.get("dtype") == "float32" else 2))
        for told in ("height", "width"):
            case.query.pop(told, None)


def test_requests_of_all_kinds_are_answered_as_documented(server):
    statuses = try_all(server, examples=8)
    assert all(statuses[label] >= {200, 422} for label in ("POST /", "POST /decode")), statuses


@pytest.mark.slow
def test_many_requests_of_all_kinds_are_answered_as_documented(server):
    statuses = try_all(server, examples=200)
    assert all(statuses[label] >= {200, 422} for label in CHANNELS), statuses
