"""The network as plain modules: readable, differentiable, no tiling, no device code.

Read `blocks.py`, then `encoder.py`, then `decoder.py`. Module names follow the published checkpoint, so that
a state dict loads strictly.
"""
