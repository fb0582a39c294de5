"""How the network is run for inference: exactly, in bounded memory, fast.

The door: `plan` says how a call would be computed, `encode` and `decode` compute it, `decode_part` what one of several
ranks holds of a clip. Shapes, dtype, device, threads and memory limit are arguments of a call; nothing of one call
stays with a model that others use.

Behind it, in the order in which it works: `gate.py` and `trust.py` say when the modules must run instead;
`networks.py` has the networks as layers, which `schedule.py` makes a sequence of steps; `cost.py` counts what steps
take; `planner.py` chooses what is kept in memory, which `planned.py` says; `run.py` executes the steps by `passes.py`,
on activations in `storage.py`, with the arithmetic in `kernels/`. Statistics of tiles meet in `stats.py`. What ranks
that share a clip tell each other is counted in `parts.py` and sent by `shared.py`.
"""

from typing import TYPE_CHECKING

from temporal_vae.engine.geometry import ITEMSIZE
from temporal_vae.engine.networks import FLUX, FLUX2, SD, SVD, Network
from temporal_vae.engine.parts import Part
from temporal_vae.engine.planned import Offer, Plan, readable
from temporal_vae.engine.planner import DEVICES, DTYPES, cores, plan
from temporal_vae.engine.progress import Listener, listener_now, reporting
from temporal_vae.engine.schedule import Task
from temporal_vae.namespace import loaded_on_use

if TYPE_CHECKING:
    from temporal_vae.engine.calls import decode, decode_part, encode, plan_like
    from temporal_vae.engine.gate import built
    from temporal_vae.engine.resources import free_memory
    from temporal_vae.engine.shared import Peers
    from temporal_vae.engine.trust import machine

__all__ = [
    "DEVICES",
    "DTYPES",
    "FLUX",
    "FLUX2",
    "ITEMSIZE",
    "SD",
    "SVD",
    "Listener",
    "Network",
    "Offer",
    "Part",
    "Peers",
    "Plan",
    "Task",
    "built",
    "cores",
    "decode",
    "decode_part",
    "encode",
    "free_memory",
    "listener_now",
    "machine",
    "plan",
    "plan_like",
    "readable",
    "reporting",
]

# What computes needs torch.
__getattr__ = loaded_on_use(
    __name__,
    {
        "Peers": "shared",
        "built": "gate",
        "decode": "calls",
        "decode_part": "calls",
        "encode": "calls",
        "free_memory": "resources",
        "machine": "trust",
        "plan_like": "calls",
    },
)
