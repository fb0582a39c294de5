"""`temporal-vae export`: a model as graphs for ONNX Runtime and others, or as archives of `torch.export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from temporal_vae.cli.console import print_json
from temporal_vae.cli.models import DTYPES, load_model
from temporal_vae.cli.options import json_option


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
