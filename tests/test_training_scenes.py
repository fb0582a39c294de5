"""Rendered scenes: the same by their number, and alive."""

import numpy as np

from temporal_vae.training.data.scenes import render_scene


def test_scenes_are_reproducible_and_move():
    clip = render_scene(7, frames=3, height=40, width=56)
    assert clip.shape == (3, 40, 56, 3)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, render_scene(7, frames=3, height=40, width=56))
    assert not np.array_equal(clip, render_scene(8, frames=3, height=40, width=56))
    assert not np.array_equal(clip[0], clip[1])
    assert clip.std() > 10


def test_a_longer_scene_begins_like_a_shorter_one():
    longer, shorter = (render_scene(3, frames=frames, height=24, width=24) for frames in (4, 2))
    assert np.array_equal(longer[:2], shorter)
