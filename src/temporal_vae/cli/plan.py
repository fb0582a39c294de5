"""`temporal-vae plan`: what a clip or picture takes, and how it would be computed. From the configuration, no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from temporal_vae import engine
from temporal_vae.cli.console import print_json
from temporal_vae.cli.options import DTYPES, PictureType, json_option, memory_option
from temporal_vae.distributed.clip.plans import ShardedPlan, plan_ranks
from temporal_vae.engine import DEVICES, Network
from temporal_vae.errors import CheckpointError, ConfigError

_PUBLISHED = {
    "svd": engine.SVD,
    "sd": engine.SD,
    "sdxl": engine.SD,
    "sd3": engine.FLUX,
    "flux": engine.FLUX,
    "flux2": engine.FLUX2,
}
_EMBEDDED = Path(__file__).parents[1] / "checkpoints" / "embedded"


@click.command()
@click.option(
    "--frames",
    type=click.IntRange(min=1),
    help="Of the clip; of image autoencoders, the number of pictures, 1 by default.",
)
@click.option(
    "--size",
    type=PictureType(),
    required=True,
    metavar="HEIGHTxWIDTH",
    help="Of the frames in pixels, the height first, as tensors have it: 576x1024 is a wide image.",
)
@memory_option
@click.option("--task", type=click.Choice(["decode", "encode"]), default="decode", show_default=True)
@click.option(
    "--model",
    default="published",
    show_default=True,
    help=f"A published configuration ({', '.join(_PUBLISHED)}; `published` is svd), `embedded`, or a folder with "
    "config.json.",
)
@click.option("--subfolder", help="Folder of the autoencoder inside the model, such as vae.")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="To compute in."
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="cpu",
    show_default=True,
    help="Whose memory is counted: that of the machine, or of a GPU.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="To compute with. Default: all cores; two streams of a GPU."
)
@click.option(
    "--ranks", type=click.IntRange(min=1), help="How many processes share the work, as under torchrun."
)
@click.option(
    "--clips", type=click.IntRange(min=1), default=1, show_default=True, help="How many clips there are."
)
@json_option
def plan(
    frames: int | None,
    size: tuple[int, int],
    memory_limit: int | None,
    task: engine.Task,
    model: str,
    subfolder: str | None,
    dtype: str,
    device: str,
    threads: int | None,
    ranks: int | None,
    clips: int,
    as_json: bool,
) -> None:
    """Show what a clip or picture takes within limits.

    The peak is what the process takes at most above the loaded model. A limit below the last rung is refused. With
    --ranks: what each of several processes takes, sends and receives.
    """
    network = _network(model, subfolder)
    if frames is None and network.temporal:
        raise click.UsageError("Missing option '--frames': this model decodes clips as a whole.")
    asked: dict[str, Any] = {"num_frames": frames or 1, "height": size[0], "width": size[1], "dtype": dtype}
    asked |= {"device": device, "memory_limit": memory_limit}
    asked["workers"] = threads or (2 if device == "cuda" else None)
    if ranks is not None:
        _show_ranks(plan_ranks(task, network, ranks=ranks, clips=clips, **asked), model, as_json=as_json)
        return
    made = engine.plan(task, network, clips=clips, **asked)
    if as_json:
        found = {"model": model, **asdict(made)}
        for level in found["levels"]:
            del level["steps"]
        print_json(found)
    else:
        click.echo(str(made))


def _show_ranks(made: ShardedPlan, model: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"model": model, "task": made.task, "ranks": [rank.to_dict() for rank in made.ranks]})
    else:
        click.echo(str(made))


def _network(model: str, subfolder: str | None) -> Network:
    if model in _PUBLISHED or model == "published":
        return _PUBLISHED.get(model, engine.SVD)
    folder = _EMBEDDED if model == "embedded" else Path(model)
    file = folder / (subfolder or "") / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{model}: no folder with a {Path(subfolder or '') / 'config.json'}; name one, or one of "
            f"{', '.join(_PUBLISHED)}, embedded"
        )
    try:
        return _read(json.loads(file.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: is no configuration of this autoencoder ({error}); save the model again"
        ) from error


def _read(config: dict[str, Any]) -> Network:
    defaults = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1}
    counts = {key: config.get(key, value) for key, value in defaults.items()}
    widths = tuple(config.get("block_out_channels", (64,)))
    decoder_widths = tuple(config.get("decoder_block_out_channels") or ())
    groups = config.get("norm_num_groups", 32)
    for value in (*counts.values(), *widths, *decoder_widths, groups):
        if type(value) is not int or value < 1:
            raise ValueError(f"{value!r} is no whole number above zero")
    if not widths:
        raise ValueError("no levels")
    if len(decoder_widths) not in (0, len(widths)):
        raise ValueError(f"{len(decoder_widths)} levels of the decoder and {len(widths)} of the encoder")
    given = {"down_block_types": (), **config, **counts, "block_out_channels": widths}
    if given.get("_class_name", "AutoencoderKLTemporalDecoder") != "AutoencoderKLTemporalDecoder":
        given.setdefault("up_block_types", ())
    return Network.of(given)
