"""Outputs in every place and under every name: nothing half-written, nothing lost, no source written over."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from command_line import run
from oracle import config, randomise
from PIL import Image
from refusals import refused
from safetensors.torch import load_file, save_file
from video_files import scene

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae import decode_video, encode_video, outputs, reconstruct_video
from temporal_vae.errors import LatentFileError, MediaError
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter
from temporal_vae.outputs import complete_or_nothing
from temporal_vae.video.latents import LatentReader

FRAMES = 4


@pytest.fixture(scope="module")
def vae():
    return randomise(Ours(**config(block_out_channels=(32,)))).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory, vae):
    """A clip and its latents."""
    folder = tmp_path_factory.mktemp("made")
    with VideoWriter(folder / "in.mkv", rate=25) as writer:
        writer.write(scene(FRAMES, 16, 24))
    encode_video(folder / "in.mkv", folder / "in.safetensors", vae=vae)
    return folder


@pytest.fixture
def clip(made, tmp_path):
    (tmp_path / "in.mkv").write_bytes((made / "in.mkv").read_bytes())
    return tmp_path / "in.mkv"


@pytest.fixture
def latents(made, tmp_path):
    (tmp_path / "in.safetensors").write_bytes((made / "in.safetensors").read_bytes())
    return tmp_path / "in.safetensors"


def images(folder, count=2):
    folder.mkdir(parents=True)
    for index, frame in enumerate(scene(count, 16, 24)):
        Image.fromarray(frame).save(folder / f"{index:06d}.png")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Sources


def test_images_in_the_folder_that_is_written(vae, tmp_path, monkeypatch):
    for name in "ab":
        images(tmp_path / "shots" / name)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    for source, target in (
        ("shots/*/*.png", "shots/a/"),
        ("shots/b", "shots/b/"),
        ("shots/b/*.png", "shots/b"),
    ):
        refused(
            MediaError,
            lambda s=source, t=target: reconstruct_video(s, t, vae=vae),
            "holds the source",
            "another",
        )
    refused(
        MediaError, lambda: reconstruct_video("shots/b/000000.png", "shots/b/", vae=vae), "holds the source"
    )
    assert contents(tmp_path) == before


def test_a_by_product_that_is_the_source(vae, clip):
    for suffix in ("compare.mp4", "metrics.json"):
        source = clip.rename(clip.with_name(f"q.mkv.{suffix}"))
        before = contents(clip.parent)
        call = lambda s=source: reconstruct_video(s, s.with_name("q.mkv"), vae=vae, compare=True)  # noqa: E731
        refused(MediaError, call, source.name, "is the source")
        assert contents(clip.parent) == before
        source.rename(clip)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_source_under_another_name(vae, clip, latents, link):
    link(clip, clip.with_name("same.mkv"))
    link(clip, clip.with_name("same.safetensors"))
    link(latents, clip.with_name("latents.mkv"))
    before = contents(clip.parent)
    refused(
        MediaError,
        lambda: reconstruct_video(clip, clip.with_name("same.mkv"), vae=vae),
        "same.mkv: is the source",
    )
    refused(
        MediaError, lambda: encode_video(clip, clip.with_name("same.safetensors"), vae=vae), "is the source"
    )
    refused(
        MediaError, lambda: decode_video(latents, clip.with_name("latents.mkv"), vae=vae), "is the source"
    )
    refused(
        MediaError,
        lambda: decode_video(latents, clip.with_name("same.mkv"), vae=vae, audio_from=clip),
        "is the source",
    )
    assert contents(clip.parent) == before


def test_by_products_of_two_targets_are_apart(vae, clip):
    for name in ("two.mkv", "two.mp4"):
        reconstruct_video(clip, clip.with_name(name), vae=vae, frames=1, compare=True)
    names = {path.name for path in clip.parent.iterdir()}
    beside = ("", ".metrics.json", ".compare.mp4", ".compare.png")
    assert names == {"in.mkv", *(f"{name}{more}" for name in ("two.mkv", "two.mp4") for more in beside)}


# Names and places


@pytest.mark.parametrize("stem", ["x" * 200, "x" * 250, "ä" * 123])
def test_long_names(vae, clip, latents, stem):
    target = clip.with_name(f"{stem}.mkv")
    decode_video(latents, target, vae=vae)
    assert target.is_file()
    encode_video(clip, clip.with_name(f"{stem[:115]}.safetensors"), vae=vae)
    longer = clip.with_name(f"{'y' * 252}.mkv")
    refused(MediaError, lambda: decode_video(latents, longer, vae=vae), "longer than 255 bytes")


def test_a_by_product_with_a_name_that_is_too_long(vae, clip):
    target = clip.with_name(f"{'y' * 245}.mkv")
    refused(
        MediaError, lambda: reconstruct_video(clip, target, vae=vae), "metrics.json", "longer than 255 bytes"
    )
    assert contents(clip.parent).keys() == {"in.mkv"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("encode", "", "x.safetensors"), "the source has no name"),
        (("encode", "{clip}", ""), "the output has no name"),
        (("decode", "", "x.mkv"), "the source has no name"),
        (("decode", "{latents}", ""), "the output has no name"),
        (("reconstruct", "{clip}", ""), "the output has no name"),
        (("reconstruct", "{clip}", "-"), "standard output"),
        (("decode", "{latents}", "-"), "standard output"),
        (("reconstruct", "{clip}", "."), "is the folder that you are in"),
        (("reconstruct", "{clip}", "./"), "is the folder that you are in"),
        (("decode", "{latents}", "../"), "is the folder that you are in, or holds it"),
        (("reconstruct", "{clip}", "/"), "or holds it"),
        (("decode", "{folder}", "x.mkv"), "is a folder; give a file"),
        (("decode", "none.safetensors", "x.mkv"), "no such file"),
    ],
)
def test_names_that_are_none(made, tmp_path, monkeypatch, capsys, words, message):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    known = {"clip": made / "in.mkv", "latents": made / "in.safetensors", "folder": made}
    assert run(*(word.format(**known) for word in words)) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert list(here.iterdir()) == []


def test_links_are_written_through(vae, latents):
    places = latents.parent / "elsewhere"
    places.mkdir()
    (places / "old.mkv").write_text("old")
    for name in ("old.mkv", "new.mkv"):
        link = latents.with_name(name)
        link.symlink_to(places / name)
        decode_video(latents, link, vae=vae)
        assert link.is_symlink()
        assert (places / name).stat().st_size > 100
    assert {path.name for path in places.iterdir()} == {"old.mkv", "new.mkv"}
    loop = latents.with_name("loop.mkv")
    loop.symlink_to(loop)
    refused(MediaError, lambda: decode_video(latents, loop, vae=vae), "loop.mkv", "link")


def test_permissions(vae, clip, latents):
    target = clip.with_name("out.mkv")
    target.write_text("old")
    target.chmod(0o640)
    decode_video(latents, target, vae=vae)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    target.chmod(0o444)
    before = target.read_bytes()
    refused(MediaError, lambda: decode_video(latents, target, vae=vae), "out.mkv: is read-only")
    refused(MediaError, lambda: reconstruct_video(clip, target, vae=vae), "out.mkv: is read-only")
    assert target.read_bytes() == before
    pipe = clip.with_name("pipe.mkv")
    os.mkfifo(pipe)
    refused(MediaError, lambda: decode_video(latents, pipe, vae=vae), "neither a file nor a folder")


# A disk without room, processes that were killed


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_under_latents(vae, clip, monkeypatch):
    before = contents(clip.parent)
    with monkeypatch.context() as patch:
        patch.setattr("temporal_vae.video.latents.shutil.copyfileobj", full)
        refused(
            LatentFileError,
            lambda: encode_video(clip, clip.with_name("x.safetensors"), vae=vae),
            "no space left",
        )
    assert contents(clip.parent) == before


@pytest.mark.parametrize("place", ["temporal_vae.video.report.Report.save", "PIL.Image.Image.save"])
def test_a_disk_that_is_full_under_a_by_product(vae, clip, monkeypatch, place):
    before = contents(clip.parent)
    monkeypatch.setattr(place, full)
    call = lambda: reconstruct_video(clip, clip.with_name("out.mkv"), vae=vae, compare=True)  # noqa: E731
    refused(MediaError, call, "out.mkv.", "no space left", "free space")
    assert contents(clip.parent) == before


def leftover(target, process):
    """What a process of that number would leave of a target."""
    name = outputs.temporary_name(target).name.replace(f"-{os.getpid()}-", f"-{process}-")
    target.with_name(name).write_text("half")
    return target.with_name(name)


def test_leftovers_of_dead_processes(tmp_path):
    target = tmp_path / "out.mkv"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    of_dead, of_alive = leftover(target, ended.pid), leftover(target, os.getppid())
    of_another = leftover(tmp_path / "other.mkv", ended.pid)
    of_a_twin = leftover(target, os.getpid())  # a process before this one, of the same number
    with complete_or_nothing(target) as temporary:
        assert not of_dead.exists()
        assert not of_a_twin.exists()
        temporary.write_text("whole")
        with complete_or_nothing(target) as second:
            assert temporary.exists()
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "whole"
    assert {*tmp_path.iterdir()} == {target, of_alive, of_another}


def test_leftovers_that_others_remove_too_or_that_are_not_ours(tmp_path, monkeypatch):
    """Two servers that start at once look into one folder; what can't be removed keeps neither from starting."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [leftover(tmp_path / name, ended.pid) for name in ("a.mkv", "b.mkv", "c.mkv")]
    remove = outputs._remove

    def also_removed_elsewhere(path):
        if path == left[0]:
            path.unlink()
            raise FileNotFoundError(path)
        if path == left[1]:
            raise PermissionError(path)
        remove(path)

    monkeypatch.setattr(outputs, "_remove", also_removed_elsewhere)
    outputs.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [left[1]]


def test_a_folder_that_was_being_replaced_comes_back(tmp_path):
    target = images(tmp_path / "frames")
    old = outputs.temporary_name(target)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    target.rename(target.with_name(old.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-") + ".old"))
    with pytest.raises(RuntimeError, match="no"), complete_or_nothing(target):
        raise RuntimeError("no")
    assert len(list(target.iterdir())) == 2
    assert list(tmp_path.iterdir()) == [target]


def interrupted_at(module, number, *words):
    """Run a command that gets a signal when it begins to load a module; exit code and what it printed."""
    code = f"""
import os, sys, threading, time
def watch():
    while {module!r} not in sys.modules:
        time.sleep(0.001)
    os.kill(os.getpid(), {int(number)})
threading.Thread(target=watch, daemon=True).start()
sys.argv = ['temporal-vae', *{[str(word) for word in words]!r}]
from temporal_vae.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("click", signal.SIGINT),
        ("torch.nn", signal.SIGTERM),
        pytest.param("numpy", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("diffusers.models", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("temporal_vae.autoencoders.temporal", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_interrupted_while_libraries_load(made, tmp_path, module, number):
    code, printed = interrupted_at(module, number, "encode", made / "in.mkv", tmp_path / "x.safetensors")
    assert (code, printed) == (128 + number, "temporal-vae: interrupted; nothing unfinished is left behind\n")
    assert list(tmp_path.iterdir()) == []


# Numbers and metadata


def test_shared_frames_get_the_same_noise(vae, latents, monkeypatch):
    decode, seen = Ours.decode, []

    def recording(self, z, num_frames, **options):
        seen.append(z)
        return decode(self, z, num_frames, **options)

    monkeypatch.setattr(Ours, "decode", recording)
    for cut in ({"clip_frames": None}, {"clip_frames": 3, "overlap": 2}):
        decode_video(latents, latents.with_name("x.mkv"), vae=vae, sample_seed=3, **cut)
    whole, first, second = seen
    assert torch.equal(first, whole[:3])
    assert torch.equal(second, whole[1:])
    decode_video(latents, latents.with_name("x.mkv"), vae=vae, sample_seed=4, clip_frames=None)
    decode_video(latents, latents.with_name("x.mkv"), vae=vae, clip_frames=None)
    other, mean = seen[3:]
    parts = [(drawn - mean).flatten(1) for drawn in (whole, other)]
    alike = torch.corrcoef(torch.cat(parts)).fill_diagonal_(0)
    assert alike.abs().max() < 0.3  # of different frames and seeds


def test_a_model_in_float64(vae, clip):
    wide = randomise(Ours(**config(block_out_channels=(32,)))).eval().double()
    encode_video(clip, clip.with_name("x.safetensors"), vae=wide)
    decode_video(clip.with_name("x.safetensors"), clip.with_name("x.mkv"), vae=vae)
    with LatentReader(clip.with_name("x.safetensors")) as reader:
        assert reader.dtype == "F64"
    assert reconstruct_video(clip, clip.with_name("y.mkv"), vae=wide).dtype == "float64"


def test_a_decoder_without_encoder_decodes_latents(vae, latents):
    alone = randomise(Ours(**config(block_out_channels=(32,)))).eval()
    for parameter in [*alone.encoder.parameters()]:
        parameter.data.fill_(torch.nan)
    decode_video(latents, latents.with_name("a.mkv"), vae=alone)
    decode_video(latents, latents.with_name("b.mkv"), vae=vae)
    a, b = (next(VideoReader(latents.with_name(f"{name}.mkv")).clips(None)).frames for name in "ab")
    assert np.array_equal(a, b)


def test_half_precision_casts_no_shared_model(clip):
    half = randomise(Ours(**config(block_out_channels=(32,)))).eval().half()
    weights = half.encoder.conv_in.weight
    types = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ours, "to", lambda self, *args, **options: types.append(args) or self)
        report = reconstruct_video(clip, clip.with_name("x.mkv"), vae=half, clip_frames=2)
    assert report.dtype == "float16"
    assert types == []
    assert half.encoder.conv_in.weight is weights
    assert weights.dtype == torch.float16


DAMAGE = [
    None,
    0,
    -1,
    1e400,
    "",
    "x",
    "1/0",
    [],
    {},
    [None],
    {"tick": "1/0", "ticks": [1]},
    {"tick": "1", "ticks": "x"},
]


def test_damaged_metadata_is_an_error_of_latents(latents):
    """Every field in turn replaced by every kind of nonsense, or gone; then bytes at random."""
    tensors = load_file(latents)
    with LatentReader(latents) as reader:
        good = json.loads(reader.info.to_json())
    odd = latents.with_name("odd.safetensors")
    said = []

    def read():
        with LatentReader(odd) as reader:
            return reader.info

    def attempt(fields):
        save_file(tensors, odd, metadata={"temporal_vae": json.dumps(fields)})
        try:
            info = read()
        except LatentFileError as error:
            said.append(str(error))
        else:  # it makes no difference, or is another value that a video can have
            assert info.rate > 0
            assert len(info.timestamps) == FRAMES

    for place in (good, good["model"], good["color"]):
        for name in list(place):
            kept = place.pop(name)
            attempt(good)
            for value in DAMAGE:
                place[name] = value
                attempt(good)
            place[name] = kept
    for text in ("[]", "3", "null", "[" * 10_000, "{"):
        save_file(tensors, odd, metadata={"temporal_vae": text})
        refused(LatentFileError, read, odd.name, "encode the video again")
    raw, chance = latents.read_bytes(), random.Random(0)
    for _ in range(100):
        damaged = bytearray(raw)
        damaged[chance.randrange(min(len(raw), 2000))] = chance.randrange(256)
        odd.write_bytes(damaged)
        with suppress(LatentFileError):
            read()
    assert len(said) > 150
    assert not any("\n" in message for message in said)


def test_integers_are_no_latents(latents):
    tensors = {name: tensor.to(torch.int32) for name, tensor in load_file(latents).items()}
    with LatentReader(latents) as reader:
        text = reader.info.to_json()
    save_file(tensors, latents, metadata={"temporal_vae": text})
    refused(LatentFileError, lambda: LatentReader(latents), "tensors of type I32")


def test_nothing_is_hashed_for_a_target_that_cannot_be(vae, clip, monkeypatch):
    def hashed(path):
        raise AssertionError("it was hashed")

    monkeypatch.setattr("temporal_vae.video.pipeline._sha256", hashed)
    refused(
        LatentFileError,
        lambda: encode_video(clip, clip.parent / "none" / "x.safetensors", vae=vae),
        "create it",
    )
