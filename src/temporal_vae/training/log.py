"""What a run shows: a progress bar or lines, TensorBoard, sheets of pictures, and a report at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from temporal_vae.media.frames import Frames
from temporal_vae.outputs import complete_or_nothing
from temporal_vae.training.checkpoint import Counters
from temporal_vae.training.validation import Figures, Sample, mean_psnr, write_sheet
from temporal_vae.video.comparison import side_by_side

_LINE_EVERY = 30.0  # seconds between lines where there is no terminal


class Watch:
    """Shows a run; every process but the first has one that shows nothing. A context manager.

    Args:
        output: folder of the run.
        steps: of the whole run.
        shown: whether this process shows anything.
        quiet: only errors and the report.
    """

    def __init__(self, output: Path, *, steps: int, shown: bool = True, quiet: bool = False) -> None:
        self._output, self._steps, self._shown = output, steps, shown
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._board: Any = None
        self._last_line = time.monotonic()
        self._quiet = quiet or not shown

    def __enter__(self) -> Watch:
        if self._shown:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._output / "tensorboard"))
        if self._console.is_terminal and not self._quiet:
            text = TextColumn("{task.description}")
            self._bar = Progress(
                text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=self._console
            )
            self._bar.start()
            self._task = self._bar.add_task("train", total=self._steps)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()

    def say(self, text: str) -> None:
        """Print a line."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            click.echo(text, err=True)

    def step(self, counters: Counters, values: Mapping[str, float]) -> None:
        """Take note of a step: its losses, the rate of learning, what else there is to plot."""
        if not self._shown:
            return
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, counters.step)
        loss = f"loss {values['loss']:.5f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=counters.step, description=loss)
        elif time.monotonic() - self._last_line >= _LINE_EVERY or counters.step == self._steps:
            self._last_line = time.monotonic()
            left = (self._steps - counters.step) * counters.seconds / max(counters.step, 1)
            self.say(f"step {counters.step}/{self._steps}: {loss}, about {_duration(left)} left")

    def validation(
        self, counters: Counters, figures: list[Figures], pairs: list[tuple[Sample, Frames]]
    ) -> None:
        """Report what validation found, and draw it."""
        if not self._shown:
            return
        step = counters.step
        for each, (sample, result) in zip(figures, pairs, strict=True):
            name = Path(each.name).name
            for key, value in (("psnr", each.psnr), ("ssim", each.ssim), ("flicker", each.flicker)):
                if value is not None:
                    self._board.add_scalar(f"validation/{name}/{key}", value, step)
            middle = len(result) // 2
            panel = side_by_side(sample.frames[middle : middle + 1], result[middle : middle + 1])[0]
            self._board.add_image(f"reconstruction/{name}", panel, step, dataformats="HWC")
        self._board.add_scalar("validation/psnr", mean_psnr(figures), step)
        self._board.flush()
        folder = self._output / "sheets"
        folder.mkdir(exist_ok=True)
        write_sheet(folder / f"step-{step:08d}.png", pairs, figures)
        self.say(f"step {step}: {describe(figures)}")

    def report(self, counters: Counters, facts: Mapping[str, Any], peak: int | None) -> dict[str, Any]:
        """Write `report.json` and print it in lines; returns what it holds.

        Args:
            counters: of the run.
            facts: more to be said, as JSON has it.
            peak: of memory, in bytes.
        """
        rate = counters.frames / counters.seconds if counters.seconds else 0.0
        report = {
            **facts,
            "steps": counters.step,
            "seconds": round(counters.seconds, 1),
            "frames": counters.frames,
            "frames_per_second": round(rate, 3),
            "peak_bytes": peak,
            "bad_steps": counters.bad,
            "faults": counters.faults,
            "best": {"step": counters.best_step, "psnr": counters.best_psnr},
        }
        if not self._shown:
            return report
        with complete_or_nothing(self._output / "report.json") as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
        self.say(
            f"{counters.step} steps, {counters.frames} frames in {_duration(counters.seconds)} ({rate:.1f} frames/s), "
            f"peak {(peak or 0) / 2**30:.1f} GiB"
        )
        if counters.bad:
            self.say(f"{counters.bad} steps left out: their loss was not finite")
        if counters.faults:
            self.say(f"{len(counters.faults)} files left out: they cannot be read (report.json names them)")
        return report


def describe(figures: list[Figures]) -> str:
    """Figures of a validation on one line."""
    parts = []
    for each in figures:
        flicker = "" if each.flicker is None else f", flicker {each.flicker:.2f}"
        parts.append(f"{Path(each.name).name} {each.psnr:.2f} dB, SSIM {each.ssim:.4f}{flicker}")
    return f"{mean_psnr(figures):.2f} dB ({'; '.join(parts)})"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
