"""How a refusal has to read."""

import re

import pytest


def refused(kind, call, *parts):
    """Assert that `call` raises exactly `kind`, with a message of one line that holds all `parts` in this order."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    message = str(caught.value)
    assert "\n" not in message
    assert message[-1] not in ".;:"
    assert re.search(".*".join(re.escape(str(part)) for part in parts), message), message
