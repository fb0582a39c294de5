"""Where statistics meet: merged moments are those of the whole, to the last digits of float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from temporal_vae.engine import processor
from temporal_vae.engine.stats import Moments, affine, merge, stack

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def values(frames, count, channels, *, mean=0.0, std=1.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(frames, count, channels, generator=random, dtype=torch.float64)


def cut(x, sizes):
    """Moments of tiles of `x`."""
    return [Moments.of_values(part) for part in x.split(list(sizes), 1)]


def assert_moments(found, x, **tolerance):
    """Those of `x` `(t, n, c)`, by the definition."""
    mean = x.mean(1)
    assert found.count == x.shape[1]
    torch.testing.assert_close(found.mean, mean, **tolerance)
    torch.testing.assert_close(found.m2, (x - mean[:, None]).square().sum(1), **tolerance)


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=9)


@given(sizes)
def test_merged_tiles_are_the_whole(sizes):
    x = values(2, sum(sizes), 3, seed=len(sizes))
    assert_moments(merge(cut(x, sizes)), x, **EXACT)


@given(sizes, st.randoms(use_true_random=False))
def test_order_does_not_matter(sizes, random):
    parts = cut(values(1, sum(sizes), 4), sizes)
    shuffled = random.sample(parts, len(parts))
    first, second = merge(parts), merge(shuffled)
    torch.testing.assert_close(first.mean, second.mean, **EXACT)
    torch.testing.assert_close(first.m2, second.m2, **EXACT)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
def test_merging_is_associative(a, b, c):
    x, y, z = cut(values(1, a + b + c, 5), (a, b, c))
    left, right = (x + y) + z, x + (y + z)
    assert left.count == right.count
    torch.testing.assert_close(left.mean, right.mean, **EXACT)
    torch.testing.assert_close(left.m2, right.m2, **EXACT)


@pytest.mark.parametrize("std", [1.0, 1e-2, 1e-4])
def test_a_large_mean_does_not_swallow_a_small_variance(std):
    """In float32, a mean of 1e4 squared leaves no digit of a variance of 1e-4."""
    x = values(1, 4096, 2, mean=1e4, std=std)
    merged = merge(cut(x, [64] * 64))
    expected = (x - x.mean(1, keepdim=True)).square().sum(1)
    torch.testing.assert_close(merged.m2, expected, rtol=1e-9 / std, atol=0)


@pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor")
@pytest.mark.parametrize("std", [1.0, 1e-2])
def test_sums_of_jobs_keep_a_small_variance(std):
    """Two frames of 64 jobs each, in machine code."""
    from temporal_vae.engine.kernels.norms import moments_of

    x = values(2, 4096, 32, mean=1e4, std=std).float().double()
    parts = x.view(2, 64, 64, 32)
    sums = torch.stack([parts.sum(2), parts.square().sum(2)], 2)  # (frame, job, 2, c)
    nbytes = sums[0, 0].nbytes
    merged = moments_of(sums.data_ptr(), 4096, 2, 64 * nbytes, 64, nbytes, 32)
    torch.testing.assert_close(merged.mean, x.mean(1), rtol=1e-14, atol=0)
    expected = (x - x.mean(1, keepdim=True)).square().sum(1)
    torch.testing.assert_close(merged.m2, expected, rtol=1e-7 / std**2, atol=0)
    swapped = sums.transpose(0, 1).contiguous()  # (job, frame, 2, c), as over time
    again = moments_of(swapped.data_ptr(), 4096, 2, nbytes, 64, 2 * nbytes, 32)
    assert torch.equal(again.m2, merged.m2)
    flat = torch.tensor([0.3, 0.0299], dtype=torch.float64).repeat_interleave(
        32
    )  # squares by rounding too small
    assert (moments_of(flat.data_ptr(), 3, 1, 0, 1, 0, 32).m2 == 0).all()


def test_averaged_variances_are_something_else():
    """What implementations that normalise tile by tile do. Half of a picture is dark, half bright, both flat."""
    x = torch.cat([values(1, 100, 1, mean=-1, std=0.1), values(1, 100, 1, mean=1, std=0.1)], 1)
    parts = cut(x, (100, 100))
    averaged = sum(part.m2 / part.count for part in parts) / 2
    merged = merge(parts)
    assert_moments(merged, x, **EXACT)
    assert (merged.m2 / merged.count).item() == pytest.approx(1.01, abs=0.01)
    assert averaged.item() == pytest.approx(0.01, abs=0.01)


def test_of_values_of_every_type():
    x = values(2, 500, 32, mean=3)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)):
        rounded = x.to(dtype)
        assert_moments(Moments.of_values(rounded), rounded.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_of_a_single_value(dtype):
    """A frame of one pixel."""
    x = values(2, 1, 32).to(dtype)
    found = Moments.of_values(x)
    assert_moments(found, x.double(), **EXACT)
    assert (found.m2 == 0).all()


def test_frames_taken_together():
    x = values(5, 60, 3, mean=2)
    whole = Moments.of_values(x)
    assert_moments(whole.over_frames(), x.flatten(0, 1)[None], **EXACT)
    assert_moments(whole.of(range(1, 4)), x[1:4], **EXACT)
    again = stack(whole.of([frame]) for frame in range(5))
    assert torch.equal(again.mean, whole.mean)
    assert torch.equal(again.m2, whole.m2)


def norm_of(channels, groups=32, eps=1e-6):
    norm = nn.GroupNorm(groups, channels, eps=eps).double()
    norm.weight.data.copy_(values(1, 1, channels, seed=1).flatten())
    norm.bias.data.copy_(values(1, 1, channels, seed=2).flatten())
    return norm


@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (64, 32), (96, 32), (8, 1), (6, 2)])
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
def test_affine_is_group_norm(channels, groups, eps):
    norm = norm_of(channels, groups, eps)
    x = values(3, 50, channels, mean=values(1, 1, channels, seed=3), std=2)
    expected = F.group_norm(x.transpose(1, 2), groups, norm.weight, norm.bias, eps).transpose(1, 2)
    pending = affine(merge(cut(x, (20, 1, 29))), norm)
    torch.testing.assert_close(x * pending.scale[:, None] + pending.shift[:, None], expected, **EXACT)
    for frame in range(3):
        of_frame = pending.of(frame)
        torch.testing.assert_close(x[frame] * of_frame.scale + of_frame.shift, expected[frame], **EXACT)


def test_affine_of_a_clip_is_the_norm_of_all_its_frames():
    norm = norm_of(64)
    x = values(4, 30, 64, mean=1)
    volume = x.permute(2, 0, 1)[None, :, :, :, None]  # (1, c, t, pixels, 1)
    expected = F.group_norm(volume, 32, norm.weight, norm.bias, norm.eps)[0, ..., 0].permute(1, 2, 0)
    pending = affine(Moments.of_values(x).over_frames(), norm)
    assert len(pending.scale) == 1
    for frame in range(4):
        of_frame = pending.of(frame)
        torch.testing.assert_close(x[frame] * of_frame.scale + of_frame.shift, expected[frame], **EXACT)


@pytest.mark.parametrize(
    ("weights", "wide"), [("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64")]
)
@torch.no_grad()
def test_affine_is_no_narrower_than_float32(weights, wide):
    norm = nn.GroupNorm(32, 64).to(getattr(torch, weights))
    pending = affine(Moments.of_values(values(2, 9, 64)), norm)
    assert pending.scale.dtype == pending.shift.dtype == getattr(torch, wide)
    assert pending.scale.is_contiguous()
    assert not pending.scale.requires_grad


@pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("over_frames", [False, True])
@pytest.mark.parametrize("channels", [32, 96, 128, 512])
def test_affine_in_machine_code(channels, over_frames, dtype):
    """Means far from zero and far apart: what `affine` computes in float64, to the last bit of float32."""
    from temporal_vae.engine.kernels.norms import affine_of

    moments = Moments.of_values(values(3, 40, channels, mean=1e3 * values(1, 1, channels, seed=3), std=0.1))
    norm = norm_of(channels, eps=1e-5).to(dtype)
    found = affine_of(moments, norm, over_frames=over_frames)
    expected = affine(moments.over_frames() if over_frames else moments, norm)
    for one, other in ((found.scale, expected.scale), (found.shift, expected.shift)):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1.2e-7, atol=0)
