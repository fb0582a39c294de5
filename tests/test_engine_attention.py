"""The kernel of attention against torch's in float64: any number of pixels, of channels, of workers."""

import pytest
import torch
import torch.nn.functional as F
from images import pair
from oracle import noise

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import (
    ATTENTION_KEYS,
    ATTENTION_ROWS,
    QUERIES,
    VECTOR,
    attention_room,
    padded,
)
from temporal_vae.engine.kernels.attention import KeysAndValues, answer
from temporal_vae.engine.kernels.crew import Crew
from temporal_vae.engine.storage import Scratch
from temporal_vae.engine.workers import Workers

pytestmark = pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor")
CPU = torch.device("cpu")


def answered(queries, keys, values, *, workers=1, at_a_time=VECTOR):
    """By the kernel; what is not written before it is read is NaN. Also the shares that were told."""
    count, channels = keys.shape
    room = torch.full((2, padded(count, VECTOR), channels), torch.nan)
    asked = KeysAndValues(*room, count)
    for first in range(0, count, at_a_time):
        asked.put(first, keys[first : first + at_a_time], values[first : first + at_a_time])
    found, told = queries * channels**-0.5, []
    scratch = [Scratch(CPU) for _ in range(workers)]
    for one in scratch:
        one.resize(attention_room(channels))
        one.take((attention_room(channels) // 4,), torch.float32).fill_(torch.nan)
    team = Workers(workers, CPU)
    with team.at_work():
        answer(Crew(team), asked, found, scratch, told.append)
    assert sum(told) == pytest.approx(1)
    return found


def exact(queries, keys, values):
    wide = [x.double()[None, None] for x in (queries, keys, values)]
    return F.scaled_dot_product_attention(*wide)[0, 0]


def assert_near(found, expected, bound=1e-5):
    assert (found.double() - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize(
    "count", [1, 5, 8, 16, 31, 32, 33, 48, ATTENTION_KEYS, ATTENTION_KEYS + 1, 2 * ATTENTION_KEYS - 31, 777]
)
@pytest.mark.parametrize("channels", [32, 96])
def test_pixels_and_channels(count, channels):
    queries, keys, values = noise(3, count, channels)
    assert_near(answered(queries, keys, values), exact(queries, keys, values))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers(workers):
    queries, keys, values = noise(3, 2 * ATTENTION_ROWS + 7, 64)
    alone = answered(queries, keys, values)
    assert torch.equal(answered(queries, keys, values, workers=workers, at_a_time=64), alone)
    assert_near(alone, exact(queries, keys, values))


def test_fewer_queries_than_keys():
    queries, keys, values = noise(13, 64), noise(400, 64, seed=2), noise(400, 64, seed=3)
    assert_near(answered(queries, keys, values), exact(queries, keys, values))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0, 1e4])
def test_scores_of_any_size(scale):
    """With large ones, a single key decides, and a later block of keys may make all before it nothing."""
    keys, values = noise(700, 32), noise(700, 32, seed=2)
    queries = scale * keys.flip(0)
    assert_near(answered(queries, keys, values), exact(queries, keys, values), 1e-4 if scale > 1 else 1e-5)


def test_all_scores_far_below_zero():
    """The keys of the padding score zero; they do not count."""
    keys, values, queries = -noise(33, 32).abs(), noise(33, 32, seed=2), 50 + noise(33, 32, seed=3).abs()
    assert (queries @ keys.T).max() < -500
    assert_near(answered(queries, keys, values), exact(queries, keys, values), 1e-4)


@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(where, value):
    queries, keys, values = noise(3, 300, 32)
    {"query": queries, "key": keys, "value": values}[where][7, 3] = value
    found, expected = answered(queries, keys, values), exact(queries, keys, values)
    assert torch.equal(found.isnan().any(1), expected.isnan().any(1))
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)


def test_rooms_that_are_none():
    for shape in ((33, 32), (64, 48)):
        with pytest.raises(RuntimeError, match="a kernel keeps 40 keys"):
            KeysAndValues(torch.empty(shape), torch.empty(shape), 40)
    asked = KeysAndValues(torch.empty(64, 32), torch.empty(64, 32), 40)
    for first, count in ((5, 32), (0, 33), (0, 31)):
        with pytest.raises(RuntimeError, match="on multiples of 32"):
            asked.put(first, torch.empty(count, 32), torch.empty(count, 32))
    with pytest.raises(RuntimeError, match="a kernel reads queries"):
        answer(Crew(Workers(1, CPU)), asked, torch.empty(9, 64), [Scratch(CPU)], print)


@pytest.mark.parametrize("size", [(45, 50), (33, 97)])
def test_frames_of_more_pixels_than_are_projected_at_once(size):
    """Their parts begin where vectors do."""
    ours = pair("AutoencoderKL", {"block_out_channels": (32,)})[0]
    z = noise(1, 4, *size)
    assert QUERIES < size[0] * size[1] < 2 * QUERIES
    with torch.no_grad():
        assert_near(ours.decode(z).sample, ours.decoder(ours.post_quant_conv(z)), 2e-5)


MACHINES = {
    "none": (None, {"float32": "float32", "bfloat16": "float32", "float16": "float32"}),
    "pairs": ({"pairs": True, "dots": True}, {"float32": "float32", "bfloat16": "float32", "float16": "float32"}),
    "tiles": ({"pairs": True, "tiles": True}, {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}),
}  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_in_which_type(monkeypatch, machine):
    """torch's is taken in tiles of bfloat16, in float64, on GPUs, and where there are no kernels."""
    features, types = MACHINES[machine]
    plain = {"kernels": "k", "name": "n", "features": "", "lanes": 16, "rows": 12, "columns": 2}
    found = None if features is None else processor.Machine(**plain, **features)
    monkeypatch.setattr(processor, "host", lambda: found)
    for dtype, expected in types.items():
        assert processor.attention_type("cpu", dtype) == expected
        own = features is not None and not (machine == "tiles" and dtype == "bfloat16")
        assert processor.attends("cpu", dtype) is own
        assert processor.attention_type("cuda", dtype) == dtype
        assert not processor.attends("cuda", dtype)
    assert processor.attention_type("cpu", "float64") == "float64"
    assert not processor.attends("cpu", "float64")
