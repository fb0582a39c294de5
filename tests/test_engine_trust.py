"""The engine is trusted where it has shown itself right; elsewhere the modules run, and one warning says why."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from command_line import run as command
from engines import build
from oracle import noise
from refusals import refused

from temporal_vae.engine import cache, calls, processor, trust
from temporal_vae.engine.gate import Reason
from temporal_vae.engine.kernels import jobs, naive, native
from temporal_vae.engine.threads import once
from temporal_vae.errors import InputError

needs_kernels = pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor")
CPU = torch.device("cpu")


@pytest.fixture
def new_machine(tmp_path, monkeypatch):
    """Nothing was ever checked here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(calls.VARIABLE, raising=False)
    monkeypatch.setattr(trust, "verdict", once(trust.verdict.__wrapped__))
    return tmp_path


def entries(folder):
    """What was kept of self-checks, each as the file and what it says."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file: text for file in files if (text := file.read_bytes()[32:]).startswith(b"off by")}


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def wrong_numbers(monkeypatch):
    right = native.NativeKernels.spatial

    def spatial(self, source, target, *arguments, **options):
        moments = right(self, source, target, *arguments, **options)
        target.data[0, 0, 0] += 1
        return moments

    monkeypatch.setattr(native.NativeKernels, "spatial", spatial)


def exception(monkeypatch):
    def temporal(*arguments, **options):
        raise RuntimeError("LLVM ERROR: cannot select\n  node of a kind")

    monkeypatch.setattr(native.native_code, "temporal", temporal)


def not_a_number(monkeypatch):
    right = jobs.moments_of

    def moments_of(*arguments):
        moments = right(*arguments)
        return jobs.Moments(moments.count, moments.mean * torch.nan, moments.m2)

    monkeypatch.setattr(jobs, "moments_of", moments_of)
    monkeypatch.setattr(native, "moments_of", moments_of)


def no_compiler(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "llvmlite"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(processor, "host", lambda: None)


FAULTS = {
    wrong_numbers: "off by",
    exception: "RuntimeError: LLVM ERROR: cannot select node of a kind",
    not_a_number: "off by nan",
    no_compiler: "llvmlite",
}


@needs_kernels
@pytest.mark.parametrize(("fault", "word"), FAULTS.items())
@torch.no_grad()
def test_a_broken_kernel_is_not_used(new_machine, monkeypatch, said, by_engine, fault, word):
    fault(monkeypatch)
    vae = build(block_out_channels=(32, 64))
    z, x = noise(2, 4, 5, 4), noise(2, 3, 10, 8)
    for _ in range(2):
        assert torch.equal(vae.decode(z, num_frames=2).sample, vae.decoder(z, num_frames=2))
        assert torch.equal(vae.encode(x).latent_dist.parameters, vae.quant_conv(vae.encoder(x)))
    assert not by_engine
    assert len(said()) == 2  # once for each of encode and decode
    for message in said():
        assert word in message
        assert "self-check" in message
        assert "temporal-vae info" in message
        assert "\n" not in message
    vae.decode(z, num_frames=2, memory_limit="4GiB")
    assert "memory limit is not kept" in said()[-1]
    assert "TEMPORAL_VAE_ENGINE=always" in said()[-1]
    assert not entries(new_machine)  # the next process tries again


@torch.no_grad()
def test_a_success_is_kept(new_machine, monkeypatch, by_engine, said):
    vae, z = build(block_out_channels=(32, 64)), noise(2, 4, 5, 4)
    vae.decode(z, num_frames=2)
    assert by_engine == {"decode": 1}
    assert not trust.verdict("decode", 6, "cpu", "float32").kept
    assert len(entries(new_machine)) == 1
    monkeypatch.setattr(trust, "_error", lambda *_: pytest.fail("it was checked before"))
    monkeypatch.setattr(trust, "verdict", once(trust.verdict.__wrapped__))
    assert trust.verdict("decode", 6, "cpu", "float32").kept
    assert trust.reason("decode", 10, CPU, torch.float32) is None
    vae.decode(z, num_frames=2)
    assert by_engine == {"decode": 2}
    assert said() == []


@pytest.mark.parametrize("change", ["torch", "processor", "engine", "damage"])
def test_another_machine_is_checked_anew(new_machine, monkeypatch, change):
    trust.verdict("encode", 1, "cpu", "float64")
    (file,) = entries(new_machine)
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    elif change == "processor":
        monkeypatch.setattr(trust, "describe", lambda device: "another one")
    elif change == "engine":
        monkeypatch.setattr(cache, "sources", lambda: "other kernels")
    else:
        file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setattr(trust, "_error", lambda *_: 0.5)
    found = once(trust.verdict.__wrapped__)("encode", 1, "cpu", "float64")
    assert not found.kept
    assert not found.trusted


@pytest.mark.parametrize("dtype", trust.TOLERANCE)
def test_a_folder_that_cannot_be_written(new_machine, monkeypatch, dtype):
    (new_machine / "temporal-vae").write_text("in the way")
    found = trust.verdict("decode", 5, "cpu", dtype)
    assert found.trusted
    assert not found.kept
    assert not once(trust.verdict.__wrapped__)("decode", 5, "cpu", dtype).kept


@torch.no_grad()
def test_the_choice_of_a_user(new_machine, monkeypatch, by_engine, said):
    vae, z = build(block_out_channels=(32, 64)), noise(2, 4, 5, 4)
    monkeypatch.setattr(trust, "_error", lambda *_: 0.5)
    monkeypatch.setenv(calls.VARIABLE, "always")
    vae.decode(z, num_frames=2)
    assert by_engine == {"decode": 1}
    monkeypatch.setenv(calls.VARIABLE, "never")
    vae.decode(z, num_frames=2)
    assert by_engine == {"decode": 1}
    assert said() == []
    vae.decode(z, num_frames=2, memory_limit="1GiB")
    assert "unset TEMPORAL_VAE_ENGINE" in said()[-1]
    monkeypatch.setenv(calls.VARIABLE, "sometimes")
    refused(InputError, lambda: vae.decode(z, num_frames=2), calls.VARIABLE, "sometimes", "auto", "never")


@pytest.mark.parametrize(
    ("limit", "free", "choice", "engine"),
    [
        (None, 2**30, "auto", False),
        (None, 2**30, "always", True),
        (None, 2**29, "auto", True),
        (2**29, 2**40, "auto", True),
    ],
)
def test_on_a_gpu_the_engine_does_what_modules_can_not(monkeypatch, limit, free, choice, engine):
    """A limit, or too little free memory: until figures of a card are there."""
    monkeypatch.setenv(calls.VARIABLE, choice)
    monkeypatch.setattr(calls.gate, "reason", lambda *_: None)
    monkeypatch.setattr(calls.trust, "reason", lambda *_, **__: None)
    monkeypatch.setattr(calls, "free_memory", lambda device: free)
    made = SimpleNamespace(peak=2**28 + 1 if free < 2**30 else 2**28, ladder=())
    x = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    found = calls._engine_plan("decode", torch.nn.Identity(), x, trust.NETWORK, 2, lambda **_: made, limit)
    monkeypatch.setattr(calls, "run", lambda *_: "engine")
    made.work = 1
    assert calls._computed(lambda: "modules", None, x, found, limit) == ("engine" if engine else "modules")


@torch.no_grad()
def test_nobody_notices(new_machine, by_engine):
    """Random numbers, gradients and the default device of whoever calls first."""
    vae, z = build(block_out_channels=(32, 64)), noise(2, 4, 5, 4)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with torch.device("meta"):
        vae.decode(z, num_frames=2)
    assert by_engine == {"decode": 1}
    assert not trust.verdict("decode", 6, "cpu", "float32").kept
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.is_grad_enabled()


def test_what_is_not_trusted_is_a_reason(new_machine, monkeypatch):
    monkeypatch.setattr(trust, "_error", lambda *_: 0.5)
    found = trust.reason("encode", 3, CPU, torch.bfloat16)
    assert isinstance(found, Reason)
    assert not found.ordinary


def test_info_without_a_model(new_machine, capsys):
    assert command("info", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["torch"] == torch.__version__
    for dtype in trust.TOLERANCE:
        assert found[f"cpu {dtype}"]["self-check"].startswith("passed")
    assert "native" in found["cpu float32"]["kernels"] or processor.host() is None
    assert "of torch" in found["cpu float64"]["kernels"]
    assert command("info") == 0
    assert "self-check passed to decode" in capsys.readouterr().out


def test_kernels_of_torch_are_checked_too(new_machine, monkeypatch):
    monkeypatch.setattr(naive.NaiveKernels, "pointwise", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in trust.verdict("decode", 5, "cpu", "float64").detail
