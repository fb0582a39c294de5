"""How the network is run for inference: exactly, in bounded memory, fast.

The door: `plan` says how a call would be computed, `encode` and `decode` compute it. Shapes, dtype, device, threads and
memory limit are arguments of a call; nothing of one call stays with a model that others use.

Behind it, in the order in which it works: `gate.py` and `trust.py` say when the modules must run instead;
`schedule.py` has the network as a sequence of steps; `cost.py` counts what steps take; `planner.py` chooses what is
kept in memory; `run.py` executes the steps by `passes.py`, on activations in `storage.py`, with the arithmetic in
`kernels/`. Statistics of tiles meet in `stats.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from temporal_vae.engine.planner import DEVICES, DTYPES, Offer, Plan, Task, cores, plan, readable
from temporal_vae.engine.progress import reporting
from temporal_vae.engine.schedule import Network

if TYPE_CHECKING:
    from temporal_vae.engine.calls import decode as decode
    from temporal_vae.engine.calls import encode as encode
    from temporal_vae.engine.calls import plan_like as plan_like
    from temporal_vae.engine.trust import machine as machine

__all__ = [
    "DEVICES",
    "DTYPES",
    "Network",
    "Offer",
    "Plan",
    "Task",
    "cores",
    "decode",
    "encode",
    "machine",
    "plan",
    "plan_like",
    "readable",
    "reporting",
]


def __getattr__(name: str) -> Any:
    """What computes needs torch, which is loaded when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "trust" if name == "machine" else "calls"
    return getattr(import_module(f"temporal_vae.engine.{home}"), name)
