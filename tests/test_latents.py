"""Latent files: what is written comes back; what is damaged or of another model does not."""

import json
import tracemalloc
import weakref
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from oracle import config, randomise
from safetensors.torch import load_file, save_file

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.errors import LatentFileError
from temporal_vae.media.frames import Color
from temporal_vae.video.latents import LatentInfo, LatentReader, LatentWriter, ModelIdentity

STAMPS = (Fraction(0), Fraction(1001, 30000), Fraction(1, 7))


def model(seed: int = 0, **options) -> AutoencoderKLTemporalDecoder:
    widths = options.pop("block_out_channels", (32, 64))
    return randomise(AutoencoderKLTemporalDecoder(**config(block_out_channels=widths, **options)), seed)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLTemporalDecoder:
    return model()


def describe(vae: AutoencoderKLTemporalDecoder) -> LatentInfo:
    return LatentInfo(
        model=ModelIdentity.of(vae),
        source_name="in.mp4",
        source_sha256="0" * 64,
        rate=Fraction(30000, 1001),
        height=9,
        width=13,
        padded_height=10,
        padded_width=14,
        color=Color(matrix="smpte170m", range="full"),
        pixel_aspect=Fraction(8, 9),
        time_base=Fraction(1, 90000),
    )


@pytest.fixture
def moments() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 4, 5, 7), torch.randn(3, 4, 5, 7)


@pytest.fixture
def path(tmp_path, vae, moments):
    path = tmp_path / "x.safetensors"
    write(path, describe(vae), *moments)
    return path


def write(path, info, mean, logvar):
    with LatentWriter(path, info) as writer:
        writer.write(mean[:2], logvar[:2], STAMPS[:2])
        writer.write(mean[2:], logvar[2:], STAMPS[2:])


def write_and_interrupt(path, info, mean, logvar):
    with LatentWriter(path, info) as writer:
        writer.write(mean, logvar, STAMPS)
        raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_comes_back(tmp_path, vae, moments, dtype):
    path = tmp_path / "x.safetensors"
    mean, logvar = (tensor.to(dtype) for tensor in moments)
    write(path, describe(vae), mean, logvar)
    with LatentReader(path, vae=vae) as reader:
        assert reader.info == replace(describe(vae), timestamps=STAMPS)
        assert reader.shape == (3, 4, 5, 7)
        for read, written in zip(reader.read(0, 3), (mean, logvar), strict=True):
            assert read.dtype == dtype
            assert torch.equal(read, written)


def test_any_safetensors_library_reads_it(path, moments):
    tensors = load_file(path)
    assert set(tensors) == {"mean", "logvar"}
    assert torch.equal(tensors["mean"], moments[0])
    assert torch.equal(tensors["logvar"], moments[1])


def test_clips_are_those_of_the_cut(path, moments):
    with LatentReader(path) as reader:
        clips = list(reader.clips(2, overlap=1))
        assert [list(numbers) for numbers, _, _ in clips] == [[0, 1], [1, 2]]
        assert torch.equal(clips[1][1], moments[0][1:])
        assert [list(numbers) for numbers, _, _ in reader.clips(None)] == [[0, 1, 2]]


def test_the_same_weights_in_another_type_are_the_same_model(path, vae):
    for dtype in (torch.bfloat16, torch.float16):
        other = model().to(dtype)
        with LatentReader(path, vae=other) as reader:
            assert len(reader) == 3


def test_a_tuned_decoder_reads_the_latents_of_its_encoder(path):
    other = model()
    randomise(other.decoder, seed=5)
    with LatentReader(path, vae=other) as reader:
        assert len(reader) == 3


@pytest.mark.parametrize("other", [{"seed": 1}, {"latent_channels": 8}, {"block_out_channels": (32, 32)}])
def test_latents_of_another_model_are_refused_with_both_names(path, other):
    stranger = model(**other)
    stranger.register_to_config(_name_or_path="some/stranger")
    with pytest.raises(LatentFileError, match=r"made by model 'unnamed'.*not by 'some/stranger'"):
        LatentReader(path, vae=stranger)


def test_nothing_appears_unless_the_block_ends_well(tmp_path, vae, moments):
    path = tmp_path / "x.safetensors"
    with pytest.raises(KeyboardInterrupt):
        write_and_interrupt(path, describe(vae), *moments)
    with pytest.raises(LatentFileError, match="no frames"), LatentWriter(path, describe(vae)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_written_are_refused_before_work_starts(tmp_path, vae):
    with pytest.raises(LatentFileError, match=r"\*\.safetensors"):
        LatentWriter(tmp_path / "x.mp4", describe(vae))
    with pytest.raises(LatentFileError, match="create it first"):
        LatentWriter(tmp_path / "missing" / "x.safetensors", describe(vae))


def test_damaged_files_are_refused_with_the_reason(tmp_path, path, moments):
    tensors, stranger = load_file(path), tmp_path / "y.safetensors"
    with LatentReader(path) as reader:
        fields = json.loads(reader.info.to_json())

    def refused(match: str) -> None:
        with pytest.raises(LatentFileError, match=match) as caught:
            LatentReader(stranger)
        assert "\n" not in str(caught.value)
        assert str(stranger) in str(caught.value)

    refused("no such file")
    stranger.write_bytes(path.read_bytes()[:-8])
    refused("no complete safetensors file")
    stranger.write_bytes(b"")
    refused("no complete safetensors file")
    save_file(tensors, stranger)
    refused("no latent file of this package")
    save_file({"mean": moments[0]}, stranger, metadata={"temporal_vae": json.dumps(fields)})
    refused("safetensors file|missing")
    save_file(tensors, stranger, metadata={"temporal_vae": json.dumps(fields | {"format_version": 9})})
    refused("version 9.*version 1")
    save_file(tensors, stranger, metadata={"temporal_vae": json.dumps(fields | {"config_sha256": "0"})})
    refused("does not match its hash")
    shorter = {name: tensor[:2].contiguous() for name, tensor in tensors.items()}
    save_file(shorter, stranger, metadata={"temporal_vae": json.dumps(fields)})
    refused("do not match")


def test_memory_does_not_grow_with_the_video(tmp_path, vae):
    tracemalloc.start()
    with LatentWriter(tmp_path / "long.safetensors", describe(vae)) as writer:
        for number in range(32):  # 33 MB
            piece = torch.randn(8, 4, 64, 64)
            alive = weakref.ref(piece)
            writer.write(piece, piece, [Fraction(8 * number + i, 30) for i in range(8)])
            del piece
            assert alive() is None
    copies = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert copies < 4 * 2**20
