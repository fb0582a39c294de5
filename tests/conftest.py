"""Settings of every test."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # the tensors are small; threads that wait for a busy core cost minutes
