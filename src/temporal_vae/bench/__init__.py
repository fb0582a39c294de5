"""Ours and its peers, timed in turn on one machine: `temporal-vae bench`.

Read `contestants.py` (who runs), `runtimes.py` (how each is made ready), `protocol.py` (what a race is), `report.py`
(what is printed). `worker.py` is the child process, `process.py` the parent's hand on it.
"""
