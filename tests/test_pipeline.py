"""Whole videos: how the work overlaps, what is reported of it, and the memory limit. A model with random weights."""

import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import config, randomise
from video_files import scene

from temporal_vae import AutoencoderKLTemporalDecoder, decode_video, encode_video, reconstruct_video
from temporal_vae.errors import InputError, MediaError, MemoryLimitError
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter
from temporal_vae.video import coder
from temporal_vae.video.latents import LatentReader, LatentWriter

pytestmark = pytest.mark.usefixtures("two_threads")

FRAMES, HEIGHT, WIDTH = 9, 35, 46  # sizes that a factor of 4 does not divide
SOON = 30  # seconds within which what must happen has happened
CUT = {"clip_frames": 4, "overlap": 1}


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLTemporalDecoder:
    options = config(block_out_channels=(32, 32, 64), latent_channels=8)
    return randomise(AutoencoderKLTemporalDecoder(**options)).eval()


@pytest.fixture(autouse=True)
def _without_limit(vae):
    yield
    vae.disable_tiling()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vae) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    with VideoWriter(folder / "in.mkv", rate=25) as writer:
        writer.write(scene(FRAMES, HEIGHT, WIDTH))
    encode_video(folder / "in.mkv", folder / "in.safetensors", vae=vae)
    return folder


def encode(folder, target, vae, **options):
    encode_video(folder / "in.mkv", target / "out.safetensors", vae=vae, **options)


def decode(folder, target, vae, **options):
    decode_video(folder / "in.safetensors", target / "out.mkv", vae=vae, **CUT, **options)


def reconstruct(folder, target, vae, **options):
    reconstruct_video(folder / "in.mkv", target / "out.mkv", vae=vae, **CUT, **options)


commands = pytest.mark.parametrize("command", [encode, decode, reconstruct], ids=lambda call: call.__name__)


def result(target: Path) -> np.ndarray:
    if (target / "out.mkv").is_file():
        with VideoReader(target / "out.mkv") as reader:
            return next(reader.clips()).frames
    with LatentReader(target / "out.safetensors") as reader:
        return reader.read(0, len(reader))[0].numpy()


@commands
def test_progress_is_the_work_done(folder, tmp_path, vae, command):
    calls = []
    command(folder, tmp_path, vae, progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    size = {"height": 36, "width": 48}
    encoding = vae.plan_encode(num_frames=1, **size).work
    decoding = [vae.plan_decode(num_frames=frames, **size).work for frames in (4, 4, 3)]
    work = {"encode": 9 * encoding, "decode": sum(decoding), "reconstruct": 11 * encoding + sum(decoding)}
    assert set(totals) == {work[command.__name__]}
    assert calls[-1] == (totals[0], totals[0])
    assert list(done) == sorted(done)
    assert len(set(done)) > 50  # within clips, not only at their ends


@commands
@pytest.mark.parametrize("expected", [None, 3, 20])
def test_progress_where_the_header_does_not_know(folder, tmp_path, vae, monkeypatch, command, expected):
    monkeypatch.setattr(VideoReader, "expected_frames", expected)
    calls = []
    command(folder, tmp_path, vae, progress=lambda *call: calls.append(call))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert all(total is None or done <= total for done, total in calls)
    assert calls[-1][0] == calls[-1][1]


@commands
def test_one_clip_is_written_while_the_next_one_computes(folder, tmp_path, vae, monkeypatch, command):
    """Writing the first clip waits until work on the second is reported."""
    first_written, second_begun = threading.Event(), threading.Event()
    writer = LatentWriter if command is encode else VideoWriter
    write = writer.write

    def wait_and_write(self, *arguments):
        if not first_written.is_set():
            first_written.set()
            assert second_begun.wait(SOON)
        write(self, *arguments)

    def listen(done, total):
        if first_written.is_set():
            second_begun.set()

    monkeypatch.setattr(writer, "write", wait_and_write)
    if command is encode:  # all of these small frames would be one piece
        monkeypatch.setattr("temporal_vae.video.coder.Coder.together", 4)
    command(folder, tmp_path, vae, progress=listen)
    assert second_begun.is_set()


@commands
def test_the_smallest_limit_gives_the_same_and_is_undone(folder, tmp_path, vae, command):
    command(folder, tmp_path, vae)
    free = result(tmp_path)
    size = {"height": 36, "width": 48}
    plans = [vae.plan_encode(num_frames=25, **size), vae.plan_decode(num_frames=4, **size)]
    smallest = max(min(rung.peak for rung in plan.ladder) for plan in plans)
    vae.enable_tiling(memory_limit="3GiB")
    command(folder, tmp_path, vae, memory_limit=smallest)
    assert (vae.use_tiling, vae.memory_limit) == (True, 3 * 2**30)
    vae.disable_tiling()
    limited = result(tmp_path)
    if command is encode:
        np.testing.assert_allclose(limited, free, rtol=1e-4, atol=1e-4)
    else:
        assert np.abs(limited.astype(int) - free).max() <= 1


@commands
def test_a_limit_that_is_too_small_is_refused_before_anything_is_written(folder, tmp_path, vae, command):
    reported = []
    with pytest.raises(MemoryLimitError, match="raise the limit to that"):
        command(folder, tmp_path, vae, memory_limit="1MiB", progress=lambda *call: reported.append(call))
    assert reported == []
    assert list(tmp_path.iterdir()) == []
    assert (vae.use_tiling, vae.memory_limit) == (False, None)


def test_two_pipelines_run_on_one_model_at_once(folder, tmp_path, vae):
    """Under two limits; each writes, to the bit, what it writes alone, and the model is as it was."""
    size = {"height": 36, "width": 48}
    plans = [vae.plan_encode(num_frames=25, **size), vae.plan_decode(num_frames=4, **size)]
    smallest = max(min(offer.peak for offer in plan.ladder) for plan in plans)
    limits, together, errors = {"tight": smallest, "wide": "3GiB", "none": None}, threading.Barrier(3), []

    def work(name, *, beside):
        try:
            target = tmp_path / f"{name}-{beside}"
            target.mkdir()
            if beside:
                together.wait(SOON)
            for _ in range(2):
                reconstruct(folder, target, vae, memory_limit=limits[name])
        except BaseException as error:
            errors.append(error)

    for name in limits:
        work(name, beside=False)
    threads = [threading.Thread(target=work, args=(name,), kwargs={"beside": True}) for name in limits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (vae.use_tiling, vae.memory_limit) == (False, None)
    for name in limits:
        assert np.array_equal(result(tmp_path / f"{name}-True"), result(tmp_path / f"{name}-False"))


def test_a_model_in_half_precision_is_cast_once(folder, tmp_path, monkeypatch):
    """Not for each video; and anew where its weights have changed."""
    options = config(block_out_channels=(32, 32), latent_channels=8)
    half = randomise(AutoencoderKLTemporalDecoder(**options)).half().eval()
    casts, cast = [], coder.deepcopy
    monkeypatch.setattr(coder, "deepcopy", lambda module: casts.append(module) or cast(module))
    encode(folder, tmp_path, half)
    first = result(tmp_path)
    encode(folder, tmp_path, half)
    assert np.array_equal(result(tmp_path), first)
    assert casts == [half.encoder, half.quant_conv]
    with torch.no_grad():
        half.quant_conv.bias.add_(1)
    encode(folder, tmp_path, half)
    assert len(casts) == 4
    assert np.abs(result(tmp_path) - first).max() > 0.5


def test_a_limit_that_only_the_decoder_exceeds(folder, tmp_path, vae, monkeypatch):
    """The refusal comes before anything is encoded."""

    def refuse(**size):
        raise MemoryLimitError("to decode takes more")

    monkeypatch.setattr(vae, "plan_decode", refuse)
    monkeypatch.setattr(vae, "encode", lambda x: pytest.fail("something was encoded"))
    with pytest.raises(MemoryLimitError, match="to decode"):
        reconstruct(folder, tmp_path, vae)


def test_a_limit_that_cannot_be_read(folder, tmp_path, vae):
    with pytest.raises(InputError, match="4 pounds"):
        encode(folder, tmp_path, vae, memory_limit="4 pounds")


@commands
def test_an_exception_half_way_leaves_nothing(folder, tmp_path, vae, command):
    class Enough(Exception):
        pass

    def listen(done, total):
        if done > total * 0.6:
            raise Enough

    with pytest.raises(Enough):
        command(folder, tmp_path, vae, progress=listen)
    assert list(tmp_path.iterdir()) == []
    assert not any(thread.name.startswith("temporal-vae") for thread in threading.enumerate())


def test_the_last_frame_is_shown_as_long_after_all(folder, tmp_path, vae):
    with VideoWriter(tmp_path / "in.mkv", rate=25) as writer:
        writer.write(scene(3, HEIGHT, WIDTH))
        writer.finish(Fraction(3))
    encode_video(tmp_path / "in.mkv", tmp_path / "in.safetensors", vae=vae)
    decode_video(tmp_path / "in.safetensors", tmp_path / "a.mkv", vae=vae)
    reconstruct_video(tmp_path / "in.mkv", tmp_path / "b.mkv", vae=vae)
    for name in "ab":
        with VideoReader(tmp_path / f"{name}.mkv") as reader:
            assert len(list(reader)) == 3
            assert reader.last_duration == 3


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_reconstruct_keeps_latents_and_source_where_asked(folder, tmp_path, vae, overlap):
    """Each frame once, whatever clips share: what `encode` and the reader give."""
    kept = {"latents": tmp_path / "out.safetensors", "source_copy": tmp_path / "source.mkv"}
    reconstruct_video(
        folder / "in.mkv", tmp_path / "out.mkv", vae=vae, clip_frames=4, overlap=overlap, **kept
    )
    with (
        LatentReader(kept["latents"], vae=vae) as found,
        LatentReader(folder / "in.safetensors", vae=vae) as expected,
    ):
        assert found.info == expected.info
        for one, other in zip(found.clips(None), expected.clips(None), strict=True):
            assert one[0] == other[0]
            for values, others in zip(one[1:], other[1:], strict=True):
                assert torch.allclose(values, others, atol=1e-4)
    with VideoReader(kept["source_copy"]) as copy, VideoReader(folder / "in.mkv") as source:
        for (frame, stamp), (as_read, its) in zip(copy, source, strict=True):
            assert np.array_equal(frame, as_read)
            assert stamp == its


def test_an_output_twice_is_refused(folder, tmp_path, vae):
    target = tmp_path / "out.mkv"
    with pytest.raises(MediaError, match="two outputs at once"):
        reconstruct_video(folder / "in.mkv", target, vae=vae, source_copy=target)
    with pytest.raises(MediaError, match="is the source itself"):
        reconstruct_video(folder / "in.mkv", target, vae=vae, source_copy=folder / "in.mkv")
    assert not list(tmp_path.iterdir())
