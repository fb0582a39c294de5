"""Exported graphs beside the model: other shapes, names, metadata, both formats, and what is refused."""

import json

import numpy as np
import pytest
import torch
from command_line import run
from oracle import assert_close, config, noise, randomise
from refusals import refused

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae import __version__
from temporal_vae.checkpoints import export
from temporal_vae.errors import CheckpointError, InputError, MediaError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL = {"block_out_channels": (32, 64), "layers_per_block": 2, "latent_channels": 8}  # both attentions run
FRAMES = [(1, 3, 2, 2), (2, 3, 3, 9), (3, 3, 15, 22), (5, 3, 34, 12)]
LATENTS = [(1, 1, 8, 1, 1), (1, 14, 8, 3, 5), (2, 1, 8, 1, 6), (4, 2, 8, 9, 2)]
ENGINE = 2e-5  # how far the engine, which computes what is expected, may be from the modules


def build(**options):
    return randomise(Ours(**config(**options))).eval()


@pytest.fixture(scope="module")
def vae():
    return build(**SMALL).train()  # nothing in it acts otherwise in training


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=pytest.mark.slow) for kind in ("onnx", "torch")]
)
def graphs(request, vae, tmp_path_factory):
    write = getattr(export, f"export_{request.param}")
    return write(vae, tmp_path_factory.mktemp(request.param) / "out")


@pytest.fixture
def tiny():
    return build(block_out_channels=(32,))


def session(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def loaded(file):
    """The graph of a file, from one tensor to a tuple of them."""
    if file.suffix == ".pt2":
        program = torch.export.load(file).module()
        return lambda x: out if isinstance(out := program(x), tuple) else (out,)
    graph = session(file)
    (name,) = (each.name for each in graph.get_inputs())
    return lambda x: tuple(map(torch.from_numpy, graph.run(None, {name: x.numpy()})))


def metadata_of(file):
    if file.suffix == ".onnx":
        return session(file).get_modelmeta().custom_metadata_map
    extra = {"metadata.json": ""}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra["metadata.json"])


@torch.no_grad()
def encoded(vae, frames):
    posterior = vae.encode(frames).latent_dist
    return posterior.mean, posterior.logvar


@torch.no_grad()
def decoded(vae, latents):
    return vae.decode(latents.flatten(0, 1), num_frames=latents.shape[1]).sample.unflatten(
        0, latents.shape[:2]
    )


# What they compute


def test_they_compute_what_the_model_does(vae, graphs):
    encoder, decoder = (loaded(graph.file) for graph in graphs)
    for shape in FRAMES:
        for one, expected in zip(encoder(noise(*shape)), encoded(vae, noise(*shape)), strict=True):
            assert_close(one, expected, ENGINE)
    for shape in LATENTS:
        (found,) = decoder(noise(*shape))
        assert_close(found, decoded(vae, noise(*shape)), ENGINE)


def test_log_variance_is_clamped(graphs):
    _, logvar = loaded(graphs[0].file)(torch.full((2, 3, 16, 16), 1e4) * noise(2, 3, 16, 16))
    assert logvar.min() >= -30
    assert logvar.max() <= 20


# What they say of themselves


def test_names_and_axes(graphs):
    if graphs[0].file.suffix != ".onnx":
        pytest.skip("archives give no names")
    encoder, decoder = (session(graph.file) for graph in graphs)
    (frames,), (latents,) = encoder.get_inputs(), decoder.get_inputs()
    assert (frames.name, frames.shape) == ("frames", ["batch", 3, "height", "width"])
    assert (latents.name, latents.shape) == ("latents", ["clips", "frames", 8, "height", "width"])
    assert [output.name for output in encoder.get_outputs()] == ["mean", "logvar"]
    assert [output.name for output in decoder.get_outputs()] == ["frames"]


def test_metadata(vae, graphs):
    for graph in graphs:
        said = metadata_of(graph.file)
        assert said["temporal_vae_version"] == __version__
        assert float(said["scaling_factor"]) == vae.config.scaling_factor
        assert (said["spatial_factor"], said["num_frames"]) == ("2", "any")
        assert build(**json.loads(said["config"])).config.latent_channels == 8


def test_report(graphs):
    (suffix,) = {graph.file.suffix for graph in graphs}
    assert [graph.file.stem for graph in graphs] == ["encoder", "decoder"]
    for graph in graphs:
        assert {file.suffix for file in graph.file.parent.iterdir()} == {suffix}
        assert 0 <= graph.error < 1e-5
        assert len(graph.shapes) >= 2


def test_files_do_not_say_where_the_code_lies(graphs):
    for graph in graphs:
        assert str(export.__file__).encode() not in graph.file.read_bytes()


@pytest.mark.usefixtures("graphs")
def test_the_model_stays_as_it_was(vae):
    assert vae.training
    assert vae.decoder.training
    assert all(parameter.requires_grad for parameter in vae.parameters())


# From the command line


@pytest.mark.slow
def test_command_onnx_half_precision_fixed_length(tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "model")
    words = ("--frames", 2, "--dtype", "float16", "--json")
    assert run("export", tmp_path / "out", "--model", tmp_path / "model", *words) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["format"], said["dtype"], said["frames"]) == ("onnx", "float16", 2)
    for graph in said["graphs"]:
        assert graph["error"] < 0.02
    decoder = session(said["graphs"][1]["file"])
    (latents,) = decoder.get_inputs()
    assert (latents.type, latents.shape) == ("tensor(float16)", ["clips", 2, 4, "height", "width"])
    (found,) = decoder.run(None, {"latents": noise(1, 2, 4, 6, 5).half().numpy()})
    assert found.dtype == np.float16
    expected = decoded(tiny, noise(1, 2, 4, 6, 5).half().float())
    assert_close(torch.from_numpy(found).float(), expected, 0.02)


@pytest.mark.slow
def test_command_torch_bfloat16_single_frames(tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "model")
    words = ("--format", "torch", "--frames", 1, "--dtype", "bfloat16")
    assert run("export", tmp_path / "out", "--model", tmp_path / "model", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / "out" / name) for name in ("encoder.pt2", "decoder.pt2")
    ]
    decoder = torch.export.load(tmp_path / "out" / "decoder.pt2").module()
    found = decoder(noise(3, 1, 4, 6, 5).bfloat16())
    assert_close(found.float(), decoded(tiny, noise(3, 1, 4, 6, 5)), 0.1)


@pytest.mark.slow
def test_archives_in_bfloat16_of_a_model_that_reduces_by_8(tmp_path):
    vae = build(block_out_channels=(32, 32, 64, 64), layers_per_block=2).bfloat16()
    encoder, decoder = (
        torch.export.load(graph.file).module() for graph in export.export_torch(vae, tmp_path / "out")
    )
    with torch.no_grad():
        for shape in ((1, 3, 8, 8), (2, 3, 9, 31), (3, 3, 40, 16)):
            x = noise(*shape).bfloat16()
            moments = vae.quant_conv(vae.encoder(x))
            assert_close(torch.cat(encoder(x), 1).float(), moments.float(), 0.02)
        for shape in ((1, 1, 4, 1, 1), (1, 5, 4, 1, 7), (2, 3, 4, 2, 1)):
            z = noise(*shape).bfloat16()
            frames = vae.decoder(z.flatten(0, 1), num_frames=shape[1]).unflatten(0, shape[:2])
            assert_close(decoder(z).float(), frames.float(), 0.02)


@pytest.mark.slow
def test_the_embedded_model(tmp_path, capsys):
    assert run("export", tmp_path / "out", "--json") == 0
    vae = Ours.from_embedded()
    encoder, decoder = (session(graph["file"]) for graph in json.loads(capsys.readouterr().out)["graphs"])
    frames = noise(9, 3, 68, 100).clamp(-1, 1)
    mean, logvar = encoder.run(None, {"frames": frames.numpy()})
    for found, expected in zip((mean, logvar), encoded(vae, frames), strict=True):
        assert_close(torch.from_numpy(found), expected, ENGINE)
    (found,) = decoder.run(None, {"latents": mean[None]})
    assert_close(torch.from_numpy(found), decoded(vae, torch.from_numpy(mean[None])), ENGINE)


# Refusals


def test_onnx_in_bfloat16(tiny, tmp_path):
    half = tiny.bfloat16()
    refused(
        InputError,
        lambda: export.export_onnx(half, tmp_path / "out"),
        "bfloat16",
        "ONNX Runtime",
        "float32 or float16",
    )


@pytest.mark.parametrize("write", [export.export_onnx, export.export_torch])
def test_misuse(tiny, tmp_path, write):
    refused(InputError, lambda: write(tiny, tmp_path / "out", frames=0), "frames=0", "from 1 up")
    refused(InputError, lambda: write(tiny.double(), tmp_path / "out"), "float64", "float32 or float16")
    tiny.float()
    refused(MediaError, lambda: write(tiny, tmp_path), tmp_path.name, "exists already")
    refused(MediaError, lambda: write(tiny, tmp_path / "none" / "out"), "no folder")
    assert not list(tmp_path.iterdir())


def test_packages_that_are_not_installed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "temporal_vae.namespace.find_spec", lambda name: None if name == "onnxscript" else name
    )
    refused(
        InputError,
        lambda: export.export_onnx(tiny, tmp_path / "out"),
        "onnxscript is not",
        "temporal-vae[export]",
    )


@pytest.mark.slow
@pytest.mark.parametrize("found", [lambda x: x + 1, lambda x: x * torch.nan])
def test_a_graph_that_computes_something_else(tiny, tmp_path, monkeypatch, found):
    read = export._read_torch
    monkeypatch.setattr(export, "_read_torch", lambda *args: lambda x: [found(one) for one in read(*args)(x)])
    refused(
        CheckpointError,
        lambda: export.export_torch(tiny, tmp_path / "out"),
        "encoder.pt2",
        "away from the model",
        "1e-04 is allowed for float32",
        "nothing was written",
    )
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_exported(tiny, tmp_path):
    class Deciding(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    tiny.encoder.conv_norm_out = Deciding()
    refused(
        CheckpointError,
        lambda: export.export_torch(tiny, tmp_path / "out"),
        "AutoencoderKLTemporalDecoder: cannot be exported",
        "as it was loaded",
    )
    assert not list(tmp_path.iterdir())
