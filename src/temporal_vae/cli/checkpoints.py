"""`temporal-vae convert` and `inflate`: other checkpoints to models of this package, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from temporal_vae.cli.console import print_fields, print_json
from temporal_vae.cli.options import DTYPES, json_option
from temporal_vae.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from temporal_vae.autoencoders.base import Autoencoder
    from temporal_vae.checkpoints.single_file import EncoderHome
from dataclasses import asdict

from temporal_vae.cli.options import load_model

_OUR_FILES = {"config.json", "README.md", ".gitattributes"}

dtype_option = click.option(
    "--dtype", type=click.Choice(DTYPES), help="To store weights in. Default: as they are."
)
subfolder_option = click.option(
    "--subfolder", help="Folder of the autoencoder inside IN, where IN is a folder, such as vae."
)
variant_option = click.option(
    "--variant", help="Of the weights in IN, where IN is a folder that holds several, such as fp16."
)
scaling_option = click.option(
    "--scaling-factor",
    type=float,
    help="To note in config.json. Default: that of IN, for a file that of its kind.",
)
ema_option = click.option(
    "--ema", is_flag=True, help="Take the averages that the original trainer keeps (model_ema.*)."
)
nonfinite_option = click.option(
    "--allow-nonfinite", is_flag=True, help="Take weights that are NaN or infinite, too."
)


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@subfolder_option
@variant_option
@click.option(
    "--encoder",
    type=click.Choice(("conditioner", "first_stage")),
    help="Which one to take from an original checkpoint that holds two. Default: that of the conditioner.",
)
@click.option("--bare", is_flag=True, help="Write an original file of the first stage alone, without prefix.")
@ema_option
@nonfinite_option
@dtype_option
@scaling_option
@json_option
def convert(
    source: str,
    target: str,
    subfolder: str | None,
    variant: str | None,
    encoder: EncoderHome | None,
    bare: bool,
    dtype: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert a checkpoint to or from its original layout.

    IN is an original checkpoint (svd_xt.safetensors, ae.safetensors) or a folder, of a video or an image autoencoder. A
    name that ends in .safetensors makes OUT an original checkpoint, any other one a folder with config.json and weights
    for this package and diffusers.
    """
    _check_target(target)
    if bare and Path(target).suffix != ".safetensors":
        raise click.UsageError("--bare is for an OUT that ends in .safetensors")
    vae, found = _load(source, subfolder, variant, encoder, **options)
    _write(vae, target, dtype, bare=bare)
    _report(target, {"source": source, "target": target, **found, **_describe(vae)}, as_json)


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@subfolder_option
@variant_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random temporal convolutions.")
@click.option(
    "--shift-latents",
    is_flag=True,
    help="Move the latents, so that frames are those of the image decoder at their border, too.",
)
@ema_option
@nonfinite_option
@dtype_option
@scaling_option
@json_option
def inflate(source: str, target: str, dtype: str | None, as_json: bool, **options: Any) -> None:
    """Make a video autoencoder of an image autoencoder.

    The result is to be trained, and written to OUT as `convert` does. IN is a folder of a diffusers AutoencoderKL,
    its Hugging Face id, or an original (LDM) .safetensors file. Until it is trained, the temporal autoencoder decodes
    each frame as the image autoencoder does.
    """
    from temporal_vae.inflation import inflate as make

    _check_target(target)
    made = make(source, **options)
    _write(made.vae, target, dtype)
    found = {"border_difference": made.difference, "latent_shift": list(made.latent_shift)}
    _report(target, {"source": source, "target": target, **found, **_describe(made.vae)}, as_json)


def _load(
    source: str,
    subfolder: str | None,
    variant: str | None,
    encoder: EncoderHome | None,
    *,
    ema: bool,
    allow_nonfinite: bool,
    scaling_factor: float | None,
) -> tuple[Autoencoder, dict[str, Any]]:
    """The model in a file or a folder, and what is to be said of where it was."""
    from temporal_vae.autoencoders.loading import class_of, class_of_file
    from temporal_vae.checkpoints import convert
    from temporal_vae.checkpoints.loading import check_finite, stored_dtype
    from temporal_vae.checkpoints.single_file import SingleFile

    options = {} if scaling_factor is None else {"scaling_factor": scaling_factor}
    folder = Path(source) / (subfolder or "")
    if folder.is_dir():
        for name, given in (("--encoder", encoder is not None), ("--ema", ema)):
            if given:
                raise click.UsageError(f"{name} is for an IN that is an original checkpoint")
        dtype = stored_dtype(folder, variant)
        vae = class_of(source, subfolder).from_pretrained(
            source, subfolder=subfolder, variant=variant, torch_dtype=dtype, **options
        )
        if not allow_nonfinite:
            check_finite(folder, convert.own_weights(vae))
        return vae, {"layout": "diffusers", "ignored_tensors": 0}
    file = SingleFile(source, encoder=encoder, ema=ema, allow_nonfinite=allow_nonfinite)
    vae = convert.load(class_of_file(file), file, options=options)
    return vae, {
        "layout": file.layout,
        "decoder_from": file.decoder_home,
        "encoder_from": file.encoder_home,
        "quant_conv": file.has("quant_conv.weight"),
        "ignored_tensors": file.ignored,
    }


def _describe(vae: Autoencoder) -> dict[str, Any]:
    from temporal_vae.checkpoints.convert import lacks_encoder

    config = vae.config
    return {
        "levels": len(config.block_out_channels),
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "class": type(vae).__name__,
        **{key: config[key] for key in ("scaling_factor", "shift_factor") if config.get(key) is not None},
        "dtype": str(vae.dtype).removeprefix("torch."),
        "encoder": not lacks_encoder(vae),
    }


def _check_target(target: str) -> None:
    """Refuse a folder that holds more than a model: it would be replaced as a whole."""
    folder = Path(target)
    others = [
        file.name
        for file in sorted(folder.iterdir() if folder.is_dir() else ())
        if file.name not in _OUR_FILES and not file.name.endswith((".safetensors", ".safetensors.index.json"))
    ]
    if others:
        raise InputError(
            f"{target}: is a folder that holds {others[0]}; name a folder of its own for the model"
        )


def _write(vae: Autoencoder, target: str, dtype: str | None, *, bare: bool = False) -> None:
    """Write a model as what the name of the target says; it appears there when it is complete."""
    import torch

    from temporal_vae.checkpoints.convert import save_single_file
    from temporal_vae.checkpoints.loading import nonfinite
    from temporal_vae.errors import first_names
    from temporal_vae.outputs import complete_or_nothing

    if dtype is not None:
        before = nonfinite(vae.state_dict())
        vae.to(getattr(torch, dtype))
        if lost := [name for name in nonfinite(vae.state_dict()) if name not in before]:
            raise InputError(
                f"--dtype {dtype}: {len(lost)} tensors hold values that are too large for it ({first_names(lost)}); "
                "use bfloat16 or float32"
            )
    with complete_or_nothing(target) as unfinished:
        if unfinished.suffix == ".safetensors":
            save_single_file(vae, unfinished, bare=bare)
        else:
            vae.save_pretrained(unfinished)


def _report(target: str, fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(fields)
    else:
        print_fields(target, {name.replace("_", " "): _text(value) for name, value in fields.items()})


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(f"{item:.4g}" for item in value) or "none"
    return "none" if value is None else str(value) or "(no prefix)"


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--model", default="embedded", show_default=True, help="Folder, Hugging Face id, or `embedded`."
)
@click.option("--subfolder", help="Folder of the autoencoder inside the model, such as vae.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Of the graphs, and of what goes in and out; bfloat16 with torch only.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(("onnx", "torch")),
    default="onnx",
    show_default=True,
    help="Of OUT.",
)
@click.option(
    "--frames",
    type=click.IntRange(min=1),
    help="The only length of clips that the decoder will take. Default: any.",
)
@json_option
def export(
    out: Path,
    model: str,
    subfolder: str | None,
    dtype: str,
    kind: str,
    frames: int | None,
    as_json: bool,
) -> None:
    """Write a model as ONNX or torch.export graphs.

    Encoder and decoder go to the new folder OUT. They take any batch, height and width, and are compared with the
    model at shapes they were not traced with; if they are off, nothing is written.
    """
    from temporal_vae.checkpoints.export import export_onnx, export_torch

    write = {"onnx": export_onnx, "torch": export_torch}[kind]
    graphs = write(load_model(model, subfolder, dtype), out, frames=frames)
    if as_json:
        parts = [asdict(graph) | {"file": str(graph.file)} for graph in graphs]
        print_json({"model": model, "format": kind, "dtype": dtype, "frames": frames, "graphs": parts})
        return
    for graph in graphs:
        size = graph.file.stat().st_size / 1e6
        click.echo(
            f"{graph.file}: {size:.1f} MB, within {graph.error:.1e} of the model at {len(graph.shapes)} shapes"
        )


@click.command()
@click.argument("model")
@click.argument("repo_id")
@click.option("--private", is_flag=True, help="Make a new repository private; refuse one that is public.")
@click.option(
    "--card",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Model card. Default: README.md of MODEL, else the one of the repository, else one from the configuration.",
)
@click.option("--message", help="Of the commit.")
@json_option
def push(
    model: str, repo_id: str, private: bool, card: Path | None, message: str | None, as_json: bool
) -> None:
    """Upload a model to the Hugging Face hub.

    MODEL is a folder or `embedded`; configuration, weights and card go to REPO_ID in one commit. The weights are
    loaded first, so that nothing is uploaded that cannot be used. The token is that of `hf auth login` or HF_TOKEN.
    """
    from temporal_vae.checkpoints import hub
    from temporal_vae.checkpoints.loading import EMBEDDED

    folder = EMBEDDED if model == "embedded" else Path(model)
    if not folder.is_dir():
        raise CheckpointError(
            f"{model}: no such folder; name one that holds config.json and the weights, or embedded"
        )
    commit = hub.push(
        load_model(model),
        folder,
        repo_id,
        card=None if card is None else card.read_text(encoding="utf-8"),
        message=message,
        private=private or None,
    )
    if as_json:
        print_json({"repo_id": commit.repo_url.repo_id, "commit": commit.oid, "url": commit.commit_url})
    else:
        click.echo(commit.commit_url)
