"""The commands, run as a user runs them, on a rendered clip and a model with random weights."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from oracle import config, randomise
from PIL import Image
from video_files import render, scene

from temporal_vae import AutoencoderKLTemporalDecoder, decode_video, encode_video, reconstruct_video
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter
from temporal_vae.video.latents import LatentReader

FRAMES, HEIGHT, WIDTH = 7, 35, 46  # sizes that a factor of 4 does not divide


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A lossless clip with uneven time stamps, a model, and its latents."""
    folder = tmp_path_factory.mktemp("commands")
    ramp = np.linspace(0, 200, WIDTH)[None, :, None] + np.arange(HEIGHT)[:, None, None]
    frames = np.stack([np.roll(ramp, 3 * t, axis=1).repeat(3, axis=2) for t in range(FRAMES)]).astype(
        np.uint8
    )
    with VideoWriter(folder / "in.mkv", rate=25) as writer:
        writer.write(frames, STAMPS)
    options = config(block_out_channels=(32, 32, 64), latent_channels=8)
    randomise(AutoencoderKLTemporalDecoder(**options)).save_pretrained(folder / "model" / "vae")
    run("encode", folder / "in.mkv", folder / "in.safetensors", *of_model(folder))
    return folder


STAMPS = tuple(Fraction(40 * t + (t % 2) * 10, 1000) for t in range(FRAMES))


def of_model(folder: Path) -> tuple[str, ...]:
    return "--model", str(folder / "model"), "--subfolder", "vae"


def read(path: Path) -> tuple[np.ndarray, tuple[Fraction, ...]]:
    with VideoReader(path) as reader:
        clip = next(reader.clips(None))
    return clip.frames, clip.timestamps


def test_encode_then_decode_restores_size_and_time_stamps(folder):
    with LatentReader(folder / "in.safetensors") as latents:
        assert latents.shape == (FRAMES, 8, 9, 12)
        assert (latents.info.height, latents.info.width) == (HEIGHT, WIDTH)
        assert latents.info.timestamps == STAMPS
    assert run("decode", folder / "in.safetensors", folder / "out.mkv", *of_model(folder)) == 0
    frames, stamps = read(folder / "out.mkv")
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert stamps == STAMPS


def test_reconstruct_is_encode_and_decode(folder, capsys):
    run(
        "decode",
        folder / "in.safetensors",
        folder / "out.mkv",
        *of_model(folder),
        "--clip-frames",
        3,
        "--overlap",
        1,
    )
    words = ("--clip-frames", 3, "--overlap", 1, "--compare", "--json", *of_model(folder))
    capsys.readouterr()
    assert run("reconstruct", folder / "in.mkv", folder / "again.mkv", *words) == 0
    decoded, again = read(folder / "out.mkv")[0], read(folder / "again.mkv")[0]
    assert np.abs(decoded.astype(int) - again).max() <= 1
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "again.mkv.metrics.json").read_text())
    assert printed["summary"]["frames"] == len(printed["per_frame"]) == FRAMES
    error = np.square(read(folder / "in.mkv")[0].astype(float) - again).mean(axis=(1, 2, 3))
    assert [row["psnr"] for row in printed["per_frame"]] == pytest.approx(10 * np.log10(255**2 / error))
    assert read(folder / "again.mkv.compare.mp4")[0].shape == (FRAMES, HEIGHT, 3 * WIDTH, 3)
    assert (folder / "again.mkv.compare.png").is_file()


def test_clip_frames_change_the_pixels(folder):
    for words in (("all",), ("25",), ("3",)):
        run(
            "decode",
            folder / "in.safetensors",
            folder / f"cut{words[0]}.mkv",
            *of_model(folder),
            "--clip-frames",
            *words,
        )
    whole, long, short = (read(folder / f"cut{name}.mkv")[0] for name in ("all", "25", "3"))
    assert np.array_equal(whole, long)
    assert not np.array_equal(whole, short)


def test_a_sample_of_the_posterior_follows_its_seed(folder):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("decode", folder / "in.safetensors", folder / f"{name}.mkv", *of_model(folder), "--sample", seed)
    a, b, c = (read(folder / f"{name}.mkv")[0] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision(folder, dtype):
    latents = folder / f"{dtype}.safetensors"
    assert run("encode", folder / "in.mkv", latents, "--frames", 2, "--dtype", dtype, *of_model(folder)) == 0
    assert run("decode", latents, folder / f"{dtype}.mkv", "--dtype", dtype, *of_model(folder)) == 0
    with LatentReader(latents) as reader, LatentReader(folder / "in.safetensors") as exact:
        assert reader.dtype == ("BF16" if dtype == "bfloat16" else "F32")  # float16 is upcast to encode
        close = {"rtol": 0.1, "atol": 0.1} if dtype == "bfloat16" else {"rtol": 0.01, "atol": 0.01}
        assert np.allclose(reader.read(0, 2)[0].float(), exact.read(0, 2)[0], **close)


def test_selection(folder):
    words = ("--start", "0.1", "--frames", 2, "--size", "24x20", *of_model(folder))
    assert run("encode", folder / "in.mkv", folder / "part.safetensors", *words) == 0
    with LatentReader(folder / "part.safetensors") as latents:
        assert latents.shape == (2, 8, 5, 6)
        assert latents.info.timestamps == STAMPS[3:5]


def test_info_describes_models_and_latents(folder, capsys):
    assert run("info", *of_model(folder)[1:], "--json") == 0
    model = json.loads(capsys.readouterr().out)
    assert model["block_out_channels"] == [32, 32, 64]
    assert model["spatial_factor"] == 4
    assert model["parameters"] == sum(
        p.numel() for p in AutoencoderKLTemporalDecoder.from_pretrained(folder / "model" / "vae").parameters()
    )
    assert run("info", folder / "in.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [FRAMES, 8, 9, 12]
    assert run("info", *of_model(folder)[1:]) == 0
    assert "spatial_factor" in capsys.readouterr().out


def test_info_describes_videos(tmp_path, capsys):
    path = render(tmp_path / "a.mp4", scene(10), rotation=(90, False), audio="aac")
    assert run("info", path, "--json") == 0
    video = json.loads(capsys.readouterr().out)
    assert (video["codec"], video["size"], video["rate"], video["frames"]) == ("h264", [48, 64], 25, 10)
    assert (video["seconds"], video["rotation"], video["interlaced"]) == (0.4, video["rotation"], False)
    assert video["sound"] == ["aac 48000 Hz stereo und"] or video["sound"] == ["aac 48000 Hz stereo"]
    assert video["color"]["matrix"] == "smpte170m"
    assert run("info", path) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == str(path)
    assert all(re.fullmatch(r"  \S+ +\S.*", line) for line in shown[1:])  # no empty head of a table
    (tmp_path / "images").mkdir()
    Image.fromarray(scene(1)[0]).save(tmp_path / "images" / "a.png")
    assert run("info", tmp_path / "images") == 0
    assert "codec" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert run("info", tmp_path / "empty") == 1
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("encode", "missing.mp4", "x.safetensors"), 1, "missing.mp4: no such file"),
        (("encode", "{in}", "x.mp4"), 1, r"name it \*.safetensors"),
        (("encode", "{in}", "missing/x.safetensors"), 1, "create it first"),
        (("decode", "{in}", "x.mp4"), 1, "is no safetensors or .npy file"),
        (("decode", "{latents}", "x.xyz"), 1, "x.xyz"),
        (("decode", "{latents}", "x.mp4", "--overlap", "25"), 1, "overlap=25"),
        (("reconstruct", "{in}", "x.mp4", "--device", "nowhere"), 1, "--device nowhere"),
        (("reconstruct", "{in}", "x.mp4", "--model", "./missing"), 1, "no such folder"),
        (("encode", "{in}", "x.safetensors", "--memory-limit", "1MiB"), 1, "raise the limit to that"),
        (("decode", "{latents}", "x.mp4", "--memory-limit", "1MiB"), 1, "raise the limit to that"),
        (
            ("reconstruct", "{in}", "x.mp4", "--compare", "--memory-limit", "1MiB"),
            1,
            "raise the limit to that",
        ),
        (("decode", "{latents}", "x.mp4", "--memory-limit", "plenty"), 2, "for example 4GiB or 500MB"),
        (("decode", "{latents}", "x.mp4", "--memory-limit", "0"), 2, "above zero"),
        (("reconstruct", "{in}", "x.mp4", "--size", "big"), 2, "is no size"),
        (("reconstruct", "{in}", "x.mp4", "--clip-frames", "0"), 2, "is no length"),
        (("reconstruct", "{in}", "x.mp4", "--fps", "1/0"), 2, "is no frame rate"),
        (("reconstruct", "{in}", "x.mp4", "--background", "nocolour"), 2, "is no colour"),
        (
            (
                "reconstruct",
                "{in}",
            ),
            2,
            "Missing argument",
        ),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_bad_input_says_why_and_leaves_nothing(folder, tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    names = {"in": folder / "in.mkv", "latents": folder / "in.safetensors"}
    words = [word.format(**names) for word in words]
    model = () if "--model" in words or len(words) < 3 else of_model(folder)
    assert run(*words, *model) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(message, printed.err)
    if code == 1:
        assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_loads_neither_torch_nor_av(folder):
    check = (
        "import sys; sys.argv = ['temporal-vae', 'reconstruct', '--help']\n"
        "from temporal_vae.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'av', 'diffusers', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--clip-frames" in done.stdout


def test_help_cuts_off_no_summary():
    done = subprocess.run(
        [sys.executable, "-m", "temporal_vae", "--help"],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    commands = done.stdout.partition("Commands:\n")[2].splitlines()
    assert len(commands) >= 10
    for line in commands:
        assert re.fullmatch(r"  [a-z-]+ +\S.*[^.]\.", line), line


def test_a_memory_limit_keeps_the_pixels(folder, tmp_path):
    for name, words in (("a", ()), ("b", ("--memory-limit", "200 MiB"))):
        assert (
            run("decode", folder / "in.safetensors", tmp_path / f"{name}.mkv", *of_model(folder), *words) == 0
        )
    a, b = (read(tmp_path / f"{name}.mkv")[0].astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 1


def test_the_bar_ends_at_100_percent_and_json_stays_json(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    words = ("--json", "--clip-frames", 3, *of_model(folder))
    assert run("decode", folder / "in.safetensors", tmp_path / "out.mkv", *words) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["frames"] == FRAMES
    shown = [int(percent) for percent in re.findall(r"(\d+)%", printed.err)]
    assert shown == sorted(shown)
    assert shown[-1] == 100
    assert re.search(r"\d:\d\d:\d\d", printed.err)  # time left


PLAN = ("plan", "--frames", 25, "--size", "576x1024")


def test_plan_shows_the_ladder_of_the_published_configuration(capsys):
    assert run(*PLAN, "--memory-limit", "4GiB", "--threads", 2) == 0
    shown = capsys.readouterr().out
    assert "25 frames of 576x1024 (height x width)" in shown
    assert "limit 4.00 GiB" in shown
    for rung in ("whole", "recompute temporal", "spill"):
        assert re.search(rf"^(->|  ) {rung} .* [GM]iB +\d+\.\d%", shown, re.M)
    assert re.search(r"level 72x128: .*\n.*level 144x256: .*\n.*level 288x512: .*\n.*level 576x1024: ", shown)


def test_plan_as_json(folder, capsys):
    assert run(*PLAN, "--json", "--threads", 2) == 0
    published = json.loads(capsys.readouterr().out)
    assert (published["frames"], published["height"], published["width"]) == (25, 576, 1024)
    assert published["peak"] == next(
        rung["peak"] for rung in published["ladder"] if rung["name"] == published["rung"]
    )
    state = 25 * 576 * 1024 * 128 * 4  # of the last level; it needs two of them
    assert 2 * state < published["peak"] < 3 * state
    of_folder = ("--json", "--task", "encode", "--dtype", "bfloat16", *of_model(folder))
    assert run(*PLAN, *of_folder) == 0
    own = json.loads(capsys.readouterr().out)
    assert (own["task"], own["dtype"], own["batch"]) == ("encode", "bfloat16", 25)
    assert [level["size"] for level in own["levels"]] == [[576, 1024], [288, 512], [144, 256]]
    assert run(*PLAN, "--model", "embedded", "--json") == 0


def test_plan_is_what_the_model_plans(folder, capsys):
    assert run(*PLAN, *of_model(folder), "--threads", 1, "--memory-limit", "2GiB") == 0
    vae = AutoencoderKLTemporalDecoder.from_pretrained(folder / "model", subfolder="vae")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plan = vae.plan_decode(num_frames=25, height=576, width=1024, memory_limit="2GiB")
    torch.set_num_threads(threads)
    assert capsys.readouterr().out == f"{plan}\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--memory-limit", "1MiB"), 1, r"memory limit 1 MiB: .* takes at least \d+ MiB"),
        (("--memory-limit", "4 pounds"), 2, "for example 4GiB"),
        (("--size", "576"), 2, r"height x width"),
        (("--size", "576x"), 2, r"height x width"),
        (("--size", "575x1024"), 1, "multiples of 8"),
        (("--model", "nowhere"), 1, "nowhere: no folder with a config.json"),
        (("--model", "{wrong}"), 1, "config.json: is no configuration"),
        (("--frames", "0"), 2, "x>=1"),
    ],
)
def test_plan_refuses(tmp_path, capsys, words, code, message):
    (tmp_path / "config.json").write_text('{"block_out_channels": [64, "wide"]}')
    words = [word.format(wrong=tmp_path) for word in words]
    assert run(*PLAN, *words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(message, printed.err)


def test_plan_needs_no_torch():
    check = (
        "import sys; sys.argv = ['temporal-vae', *sys.argv[1:]]\n"
        "from temporal_vae.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'av', 'diffusers', 'numpy', 'rich', 'psutil'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    words = [*map(str, PLAN), "--memory-limit", "4GiB"]
    done = subprocess.run([sys.executable, "-c", check, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "chosen: peak" in done.stdout


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(folder, footage, tmp_path):
    words = ["reconstruct", str(footage), str(tmp_path / "out.mkv"), "--compare", "--clip-frames", "1"]
    command = [sys.executable, "-m", "temporal_vae", *words, *of_model(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.strip() == "temporal-vae: interrupted; nothing unfinished is left behind"
    assert list(tmp_path.iterdir()) == []


def test_calls_take_a_width_alone(folder, tmp_path):
    vae = AutoencoderKLTemporalDecoder.from_pretrained(folder / "model", subfolder="vae")
    info = encode_video(folder / "in.mkv", tmp_path / "x.safetensors", vae=vae, frames=2, size=20)
    assert (info.width, info.height) == (20, round(20 * HEIGHT / WIDTH))
    assert len(info.timestamps) == 2
    report = reconstruct_video(folder / "in.mkv", tmp_path / "x.mkv", vae=vae, frames=2, size=(20, 16))
    assert (report.width, report.height) == (20, 16)
    assert decode_video(tmp_path / "x.safetensors", tmp_path / "y.gif", vae=vae) == info
