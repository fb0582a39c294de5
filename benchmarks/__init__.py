"""Ours and its peers, timed in turn on one machine: `make bench`.

Read `contestants.py` (who runs), `runtimes.py` (how each is made ready), `protocol.py` (what a race is), `results.py`
(what is printed). `worker.py` is the child process, `process.py` the parent's hand on it.
"""
