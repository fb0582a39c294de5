"""The networks as plain modules: readable, differentiable, no tiling, no device code.

Read `blocks.py`, then `encoder.py`, then `decoder.py` (clips) or `image_decoder.py` (pictures). Names and order of the
modules follow the published checkpoints, so that a state dict loads strictly, and the state of an optimizer, which goes
by order, fits too.
"""

from temporal_vae.model.decoder import TemporalDecoder
from temporal_vae.model.encoder import Encoder
from temporal_vae.model.image_decoder import Decoder

__all__ = ["Decoder", "Encoder", "TemporalDecoder"]
