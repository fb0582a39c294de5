"""Files from strangers: only those that hold all they show."""

from __future__ import annotations

from pathlib import Path

import av

from temporal_vae.errors import MediaError, file_name
from temporal_vae.media.images import is_image

SELF_CONTAINED = (
    *(
        "mov",
        "matroska",
        "webm",
        "avi",
        "mpegts",
        "mpeg",
        "ogg",
        "flv",
        "asf",
        "mxf",
        "nut",
        "ivf",
        "gif",
        "apng",
    ),
    *(
        "h264",
        "hevc",
        "av1",
        "obu",
        "mjpeg",
        "mpegvideo",
        "m4v",
        "vc1",
        "dv",
        "yuv4mpegpipe",
        "wtv",
        "rm",
        "swf",
    ),
)
"""Formats, as FFmpeg names them, whose files name no others; playlists (HLS, DASH, concat, SDP) do."""


def check_self_contained(path: Path) -> None:
    """Refuse a file that could make FFmpeg open another one, or an address: it is not even looked into.

    Raises:
        MediaError: such a file, or none that can be read.
    """
    if is_image(path):
        return
    options = {"format_whitelist": ",".join(SELF_CONTAINED), "protocol_whitelist": "file"}
    try:
        av.open(f"file:{path}", options=options, metadata_errors="replace").close()
    except av.FFmpegError as error:
        raise MediaError(
            f"{file_name(path.name)}: holds no video or image, or is a list of other files, which are not opened here; "
            "send MP4, MOV, MKV, WebM, AVI or an image"
        ) from error
