"""The Triton kernels and their twins: under Triton's interpreter anywhere, compiled where there is a GPU.

Triton settles at its first import whether it interprets. So the tests on the CPU's memory run in a process of their
own, which `test_under_the_interpreter` starts; in any other they are skipped.
"""

import inspect
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product

import pytest
import torch

from temporal_vae.engine.kernels import triton_kernels as kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OTHER_DTYPES = [
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float16),
]
# rows, channels, frames: one row, one frame, frames of one row, blocks and channels that nothing divides
SHAPES = [(1, 32, 1), (7, 64, 7), (130, 96, 2), (257, 160, 1), (1539, 24, 3), (70, 512, 2)]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(params=["interpreted", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where a kernel runs."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if request.param == "cuda":
        if INTERPRETED or not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return "cuda"
    if not INTERPRETED:
        pytest.skip("runs in test_under_the_interpreter")
    return "cpu"


@pytest.fixture(autouse=True)
def poison():
    """Uninitialised memory is full of NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    assert torch.empty(3).new_empty(2, 4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def tile(rows, c, frames, dtype=torch.float32):
    """Values whose mean differs from channel to channel and from frame to frame."""
    generator = torch.Generator().manual_seed(rows * c)
    x = torch.randn(frames, rows // frames, c, generator=generator)
    x += torch.linspace(-1, 1, c) + 2 * torch.arange(frames)[:, None, None]
    return x.flatten(0, 1).to(dtype)


def affine(c, frames):
    generator = torch.Generator().manual_seed(c)
    return torch.randn(2, frames, c, generator=generator).unbind()


def expected_norm(x, scale, shift, *, silu):
    """The definition, frame by frame in float64."""
    parts = zip(x.cpu().double().chunk(len(scale)), scale.cpu().double(), shift.cpu().double(), strict=True)
    y = torch.cat([part * a + b for part, a, b in parts])
    return y / (1 + torch.exp(-y)) if silu else y


def assert_norm(out, expected, *, truncated=False):
    """Float32 arithmetic, then one rounding; `truncated`: as Triton's interpreter stores bfloat16."""
    rounding = torch.finfo(out.dtype).eps * (1 if truncated else 0.5)
    torch.testing.assert_close(out.cpu().double(), expected, atol=4e-6, rtol=rounding + 5e-7)


@pytest.mark.parametrize(("rows", "c", "frames"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(device, rows, c, frames, dtype):
    check_norm(device, rows, c, frames, dtype, dtype, silu=True)


@pytest.mark.parametrize(("dtype", "out_dtype"), OTHER_DTYPES)
def test_norm_into_another_type(device, dtype, out_dtype):
    check_norm(device, 150, 96, 3, dtype, out_dtype, silu=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_alone(device, dtype):
    check_norm(device, 150, 160, 2, dtype, dtype, silu=False)


def check_norm(device, rows, c, frames, dtype, out_dtype, *, silu):
    scale, shift = (t.to(device) for t in affine(c, frames))
    x = tile(rows, c, frames, dtype).to(device)
    out = torch.empty(rows, c, dtype=out_dtype, device=device)
    assert kernels.norm_silu(x, scale, shift, out, silu=silu) is out
    truncated = device == "cpu" and out_dtype == torch.bfloat16
    assert_norm(out, expected_norm(x, scale, shift, silu=silu), truncated=truncated)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_in_place_and_between_strides(device, dtype):
    rows, c, frames = 150, 96, 3
    scale, shift = (t.to(device) for t in affine(c, frames))
    x = tile(rows, c, frames, dtype).to(device)
    out = kernels.norm_silu(x, scale, shift, torch.empty_like(x))

    source = torch.empty(rows, 2 * c, dtype=dtype, device=device)
    target = torch.empty(rows, c + 24, dtype=dtype, device=device)
    source[:, c:] = x
    kernels.norm_silu(source[:, c:], scale, shift, target[:, 3 : c + 3])
    assert torch.equal(target[:, 3 : c + 3], out)
    assert target[:, :3].isnan().all()
    assert target[:, c + 3 :].isnan().all()
    assert torch.equal(source[:, c:], x)

    kernels.norm_silu(source[:, c:], scale, shift, source[:, c:])
    assert torch.equal(source[:, c:], out)
    assert source[:, :c].isnan().all()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # said by the interpreter's numpy
def test_norm_of_values_far_from_zero(device):
    x = torch.tensor([-1e30, -1e4, -89.0, -30.0, 0.0, 30.0, 89.0, 1e4, 1e30], device=device)[:, None]
    one, zero = torch.ones(1, 1, device=device), torch.zeros(1, 1, device=device)
    out = kernels.norm_silu(x, one, zero, torch.empty_like(x))
    assert_norm(out, x.cpu().double().clamp(min=0))  # SiLU there is 0 or the value itself, to float32


@pytest.mark.parametrize(("rows", "c", "frames"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments(device, rows, c, frames, dtype):
    x = tile(rows, c, frames, dtype)
    padded = torch.empty(rows, c + 16, dtype=dtype, device=device)
    padded[:, :c] = x
    assert_moments(x.to(device), frames)
    assert_moments(padded[:, :c], frames)


@pytest.mark.parametrize(("rows", "frames"), [(2 * 16 * 4**3 + 5, 1), (2 * 16 * 4**3 + 6, 2)])
def test_moments_of_many_blocks(device, rows, frames, monkeypatch):
    """Merged in four rounds; the last blocks are short."""
    monkeypatch.setattr(kernels, "MOMENT_ROWS", 16)
    monkeypatch.setattr(kernels, "MERGE_BLOCKS", 4)
    assert_moments(tile(rows, 32, frames).to(device), frames)


@pytest.mark.parametrize("rows", [3, 600, 70_001])
def test_moments_far_from_zero(device, rows):
    """Sums of squares in float32 would leave no digit of the variance."""
    assert_moments(tile(rows, 32, 1).to(device) + 1e4, 1)


def test_moments_are_the_same_bits_in_every_run(device):
    x = tile(6000, 96, 2).to(device)
    first = kernels.moments(x, 2)
    for _ in range(3):
        assert all(map(torch.equal, kernels.moments(x, 2), first))


def assert_moments(x, frames):
    mean, m2 = kernels.moments(x, frames)
    assert mean.dtype == m2.dtype == torch.float64
    for i, frame in enumerate(x.cpu().double().chunk(frames)):
        squares = (frame - frame.mean(0)).square().sum(0)
        torch.testing.assert_close(mean[i].cpu(), frame.mean(0), atol=1e-6, rtol=0)
        torch.testing.assert_close(m2[i].cpu(), squares, atol=1e-6, rtol=2e-6)


@pytest.mark.parametrize(("rows", "c", "frames"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_twins(rows, c, frames, dtype):
    x = tile(rows, c, frames, dtype)
    scale, shift = affine(c, frames)
    for out_dtype, silu in product(DTYPES, (True, False)):
        out = kernels.norm_silu_torch(x, scale, shift, torch.empty(rows, c, dtype=out_dtype), silu=silu)
        assert_norm(out, expected_norm(x, scale, shift, silu=silu))
    mean, m2 = kernels.moments_torch(x, frames)
    for i, frame in enumerate(x.double().chunk(frames)):
        torch.testing.assert_close(mean[i], frame.mean(0))
        torch.testing.assert_close(m2[i], frame.var(0, correction=0) * len(frame))
    inplace = x.clone()
    kernels.norm_silu_torch(inplace, scale, shift, inplace)
    assert torch.equal(inplace, kernels.norm_silu_torch(x, scale, shift, torch.empty_like(x)))


@pytest.mark.parametrize(
    "norm", [pytest.param(kernels.norm_silu, id="kernel"), pytest.param(kernels.norm_silu_torch, id="twin")]
)
def test_arguments_that_would_reach_outside_a_tensor(norm):
    x, (scale, shift) = tile(12, 32, 1), affine(32, 1)
    for wrong in (
        (x, scale, shift, x[:6]),
        (x, scale[:, :16], shift, x),
        (x, scale, shift.double(), x),
        (x, *affine(32, 5), x),
        (x.t(), *affine(12, 1), x.t()),
    ):
        with pytest.raises(AssertionError):
            norm(*wrong)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_more_elements_than_32_bits_count(device):
    free, _ = torch.cuda.mem_get_info()
    if free < 6 * 2**30:
        pytest.skip("needs 6 GiB of GPU memory")
    c = 128
    rows = 2**31 // c + 1000
    x = torch.zeros(rows, c, dtype=torch.bfloat16, device="cuda")
    x[-1] = 1
    mean, m2 = kernels.moments(x, 1)
    torch.testing.assert_close(mean.cpu(), torch.full((1, c), 1 / rows, dtype=torch.float64))
    torch.testing.assert_close(m2.cpu(), torch.full((1, c), 1 - 1 / rows, dtype=torch.float64))
    one = torch.ones(1, c, device="cuda")
    kernels.norm_silu(x, one, one, x, silu=False)
    assert x[[0, rows // 2, rows - 2, rows - 1], 0].tolist() == [1, 1, 1, 2]


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this process interprets")
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [*product(("_norm_silu", "_block_moments"), ("fp32", "fp16", "bf16")), ("_merge_moments", "fp64")],
)
def test_compiles_for_a_gpu_that_is_not_here(kernel, dtype, tmp_path, monkeypatch):
    """The interpreter accepts more than the compiler does."""
    import triton
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(kernels, kernel)
    constants = {"SILU": True, "ROWS": 128, "BLOCKS": 128, "COLUMNS": 32}
    types = {"x": f"*{dtype}", "out": f"*{dtype}"}
    types |= dict.fromkeys(("scale", "shift"), "*fp32")
    types |= dict.fromkeys(("mean", "m2", "merged_mean", "merged_m2"), "*fp64")
    types |= dict.fromkeys(constants, "constexpr")
    names = list(inspect.signature(function).parameters)
    source = triton.compiler.ASTSource(
        kernels._jit(function),
        {name: types.get(name, "i32") for name in names},
        {name: value for name, value in constants.items() if name in names},
    )
    target = GPUTarget("cuda", 90, 32)
    assert triton.compile(source, target=target, options={"enable_fp_fusion": True}).asm["cubin"]


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="starts this very process")
def test_under_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "interpreted", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def test_import_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from temporal_vae.engine.kernels import triton_kernels\n"
        "assert not triton_kernels.available()"
    )
    env = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_available(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.available()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.available() == (find_spec("triton") is not None)
