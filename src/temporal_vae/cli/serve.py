"""`temporal-vae serve`: one model behind HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from temporal_vae.cli.options import MemoryType, takes_model, together
from temporal_vae.errors import InputError
from temporal_vae.namespace import need_extra

if TYPE_CHECKING:
    from temporal_vae.autoencoders.base import Autoencoder

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SHARE_OF_FREE = 0.8


def _time_option(name: str, seconds: float, about: str) -> Callable[[Any], Any]:
    """An option of seconds, more than none."""
    positive = click.FloatRange(min=0, min_open=True)
    return click.option(name, type=positive, default=seconds, show_default=True, help=about)


_address_options = together(
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at."),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        help="Port to listen at; 0 takes one that is free.",
    ),
    click.option(
        "--token",
        envvar="TEMPORAL_VAE_TOKEN",
        metavar="TOKEN",
        help="What clients have to send as `Authorization: Bearer TOKEN`; better in the variable TEMPORAL_VAE_TOKEN, "
        "since other users see command lines.",
    ),
    click.option(
        "--origin",
        "origins",
        multiple=True,
        metavar="URL",
        help="Another site, whose pages may use this server.",
    ),
)

_limit_options = together(
    click.option(
        "--memory-limit",
        type=MemoryType(),
        metavar="AMOUNT",
        help="What all requests and jobs may take above the model; 80 % of what is free by default.",
    ),
    click.option(
        "--body-limit", type=MemoryType(), default="256MiB", show_default=True, help="The largest body."
    ),
    click.option(
        "--queue",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Requests in hand at once; more are told to come later.",
    ),
    _time_option("--seconds", 600, "How long a request may take, its wait included."),
    click.option(
        "--jobs", type=click.IntRange(min=1), default=4, show_default=True, help="Videos in hand at once."
    ),
    _time_option("--job-seconds", 3600, "How long a video may take."),
    _time_option("--results-seconds", 3600, "How long results of videos are kept."),
    click.option(
        "--results-limit",
        type=MemoryType(),
        default="4GiB",
        show_default=True,
        help="What all videos and their results may take of the disk.",
    ),
    click.option(
        "--results-folder",
        "folder",
        type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
        help="Where they lie; the system's folder for temporary files by default.",
    ),
    click.option(
        "--grace",
        type=click.FloatRange(min=0),
        default=30,
        show_default=True,
        help="Seconds for what is being computed when the server is asked to stop.",
    ),
)


@click.command()
@_address_options
@_limit_options
@takes_model
def serve(
    vae: Autoencoder,
    host: str,
    port: int,
    token: str | None,
    grace: float,
    memory_limit: int | None,
    folder: Path | None,
    **limits: Any,
) -> None:
    """Serve a model over HTTP, to programs and to people.

    POST /decode and /encode speak the protocol of `remote_decode` and `remote_encode` of diffusers; the page at / takes
    videos. Ctrl-C and SIGTERM let finish what is being computed, and refuse the rest.
    """
    need_extra("serve", "fastapi", "jinja2", "prometheus_client", "python_multipart", "uvicorn")
    from temporal_vae.engine import free_memory
    from temporal_vae.serve import Service, Settings
    from temporal_vae.serve import serve as run

    if token is not None and (not token.isascii() or not token.isprintable() or not token.strip()):
        raise InputError("--token: letters and digits of ASCII only, since it travels in a header")
    for origin in limits["origins"]:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise InputError(
                f"--origin {origin}: a scheme and a host, as https://example.com, without a path"
            )
    name = Path(vae.config.get("_name_or_path") or "")
    if name.exists():  # clients are told what it is called, not where it lies
        vae.register_to_config(_name_or_path=name.resolve().name)
    limit = memory_limit or int(_SHARE_OF_FREE * free_memory(vae.device))
    local = host in LOOPBACK
    limits |= {"folder": folder} if folder else {}
    settings = Settings(memory_limit=limit, token=token, hosts=LOOPBACK if local else None, **limits)
    service = Service(vae, settings)
    service.warm_up()

    def started(address: str) -> None:
        click.echo(f"serving on {address}", err=True)
        if not local and token is None:
            click.echo(
                f"temporal-vae: {host} is open to the network, and anybody may use it; see --token", err=True
            )

    run(service, host=host, port=port, grace=grace, started=started)
