"""Videos whose frames carry their number as a pattern that survives the autoencoder and H.264."""

from __future__ import annotations

import numpy as np

from temporal_vae.media import VideoWriter

BITS = 4
_BLOCK = 24  # pixels


def numbered_frame(number):
    """Blocks of white and black, the least bit first, above their opposites."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)])
    picture = np.kron(np.stack([bits, 1 - bits]), np.ones((_BLOCK, _BLOCK)))
    return np.repeat((40 + 175 * picture)[..., None], 3, axis=2).astype(np.uint8)


def number_of(picture):
    """The number that a frame carries; the blocks must agree with their opposites."""
    middle = picture.mean(axis=2).reshape(2, _BLOCK, BITS, _BLOCK)[:, 8:16, :, 8:16].mean(axis=(1, 3)) > 127
    assert (middle[0] != middle[1]).all()
    return sum(1 << bit for bit in range(BITS) if middle[0, bit])


def write_numbered(path, count, rate=12):
    with VideoWriter(path, rate=rate) as writer:
        writer.write(np.stack([numbered_frame(number) for number in range(count)]))
    return path
