"""A model, a clip, and a report of it, as fixtures of pytest."""

import pytest
from oracle import config, randomise
from report_pages import CUT, FRAMES, HEIGHT, WIDTH, Worse
from video_files import scene

from temporal_vae import AutoencoderKLTemporalDecoder, reconstruct_video
from temporal_vae.media.writer import VideoWriter


@pytest.fixture(scope="module")
def vae():
    return randomise(AutoencoderKLTemporalDecoder(**config(block_out_channels=(32,)))).eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "in.mkv"
    with VideoWriter(path, rate=25) as writer:
        writer.write(scene(FRAMES, HEIGHT, WIDTH))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, clip, vae):
    """A report, its charts and its figures."""
    folder = tmp_path_factory.mktemp("made")
    options = {"vae": vae, "coder_type": Worse, "charts": True, **CUT}
    figures = reconstruct_video(clip, folder / "out.mkv", report=folder / "page.html", **options)
    return folder, figures, (folder / "page.html").read_text(encoding="utf-8")
