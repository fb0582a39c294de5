"""The network as plain modules: readable, differentiable, no tiling, no device code.

Read `blocks.py`, then `encoder.py`, then `decoder.py`. Names and order of the modules follow the published
checkpoint, so that a state dict loads strictly, and the state of an optimizer, which goes by order, fits too.
"""

from temporal_vae.model.decoder import TemporalDecoder
from temporal_vae.model.encoder import Encoder

__all__ = ["Encoder", "TemporalDecoder"]
