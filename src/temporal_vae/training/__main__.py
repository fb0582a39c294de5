"""`python -m temporal_vae.training`: make the embedded model again, from nothing to its folder."""

import time
from pathlib import Path

import click


@click.command()
@click.option(
    "--media", type=click.Path(path_type=Path, exists=True, file_okay=False), help="More footage to train on."
)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the run."
)
def main(media: Path | None, output: Path) -> None:
    """Train the embedded model; a run that was interrupted goes on where it stopped.

    Writes OUTPUT/checkpoint.safetensors again and again, and at the end the model to OUTPUT/model.
    """
    from temporal_vae.errors import TemporalVaeError

    try:
        _make(media, output)
    except TemporalVaeError as error:
        raise click.ClickException(str(error)) from error


def _make(media: Path | None, output: Path) -> None:
    from temporal_vae.training.data import Sampler, training_sources
    from temporal_vae.training.evaluate import held_out, summary
    from temporal_vae.training.export import export
    from temporal_vae.training.loop import train
    from temporal_vae.training.recipe import EMBEDDED

    start = time.monotonic()

    def report(line: str) -> None:
        click.echo(f"{time.monotonic() - start:7.0f} s  {line}")

    sampler = Sampler(training_sources(media), seed=EMBEDDED.seed, odds=EMBEDDED.odds)
    report("sources are ready")
    clips = held_out(media, frames=8)
    vae = train(
        EMBEDDED,
        sampler,
        checkpoint=output / "checkpoint.safetensors",
        validate=lambda model: summary(model, clips),
        report=report,
    )
    export(vae, sampler, output / "model")
    report(f"wrote {output / 'model'}")


if __name__ == "__main__":
    main(prog_name="python -m temporal_vae.training")
