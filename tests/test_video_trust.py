"""Files from strangers: what holds all it shows is read, what names other files is not even looked into."""

from pathlib import Path

import av
import pytest
from PIL import Image
from refusals import refused
from video_files import render, scene

from temporal_vae.errors import MediaError
from temporal_vae.media.trust import check_self_contained


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.mp4", "libx264"),
        ("clip.mov", "mpeg4"),
        ("clip.mkv", "ffv1"),
        ("clip.webm", "libvpx-vp9"),
        ("clip.avi", "mpeg4"),
        ("clip.ts", "libx264"),
        ("clip.flv", "flv1"),
        ("clip.h264", "libx264"),
        ("clip.mjpeg", "mjpeg"),
    ],
)
def test_videos_are_taken(tmp_path: Path, name: str, codec: str) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    check_self_contained(render(tmp_path / name, scene(3), codec=codec, pix_fmt=pix_fmt))


@pytest.mark.parametrize(
    "name", ["picture.png", "picture.jpg", "picture.gif", "picture.webp", "picture.tiff"]
)
def test_images_are_taken(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (32, 24), "red").save(tmp_path / name)
    check_self_contained(tmp_path / name)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {secret.name}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_lists_of_other_files_are_refused(tmp_path: Path, name: str) -> None:
    secret = render(tmp_path / "secret.mp4", scene(3))
    playlist = tmp_path / name
    playlist.write_text(PLAYLISTS[name].format(secret=secret))
    with av.open(str(playlist)) as container:  # which is what FFmpeg makes of it
        assert container.streams.video
    refused(MediaError, lambda: check_self_contained(playlist), name, "list of other files", "MP4")


@pytest.mark.parametrize("content", ["", "once upon a time\n" * 9, "v=0\nm=video 5004 RTP/AVP 96\n"])
def test_what_is_no_video_is_refused(tmp_path: Path, content: str) -> None:
    other = tmp_path / "clip.mp4"
    other.write_text(content)
    refused(MediaError, lambda: check_self_contained(other), "clip.mp4", "no video", "MP4")
