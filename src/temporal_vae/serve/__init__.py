"""One model behind HTTP: a service for programs, and jobs and a page for people.

From outside in: `server.py` is the process, `connections.py` what comes in, `app.py` the routes, `guard.py` what
every request passes first. `queries.py`, `tensors.py`, `pictures.py` and `bodies.py` read what clients send;
`coding.py` plans and computes it; `desk.py` gives out places and turns; `answers.py` sends what came of it. `jobs.py`
holds the jobs of people, `job_routes.py` their routes, `reconstruction.py` what is done with a video; `page.py` hands
out the page. `refusals.py` and `problems.py` are the errors.
"""

from typing import TYPE_CHECKING

from temporal_vae.namespace import loaded_on_use
from temporal_vae.serve.settings import Settings

if TYPE_CHECKING:
    from temporal_vae.serve.app import Service
    from temporal_vae.serve.server import serve

__all__ = ["Service", "Settings", "serve"]

__getattr__ = loaded_on_use(__name__, {"Service": "app", "serve": "server"})
