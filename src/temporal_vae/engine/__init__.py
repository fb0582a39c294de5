"""How the network is run for inference: exactly, in bounded memory, fast.

Read `run.py` (encoder and decoder as sequences of passes), then `passes.py`, then `stats.py`, where the statistics of
tiles meet. `plan.py` decides what is kept in memory (`budget.py` counts), `storage.py` keeps it, `kernels/` does the
arithmetic on tiles, and `gate.py` says when the modules must run instead.
"""
