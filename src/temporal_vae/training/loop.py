"""The training loop: steps, checkpoints, validation, and an orderly end.

A run that is interrupted at any moment, SIGKILL included, and started again ends in the same weights, bit for bit, on
the same machine: batches and noise depend on the number of the step alone, and a checkpoint holds all that a step
changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.errors import ConfigError, TrainingError
from temporal_vae.interrupts import Interrupts
from temporal_vae.outputs import complete_or_nothing, remove_leftovers
from temporal_vae.training import checkpoint, initial, validation
from temporal_vae.training.checkpoint import locked
from temporal_vae.training.config.fields import TrainConfig, differences, read_config, to_yaml
from temporal_vae.training.data.dataloader import Clips, load, to_device
from temporal_vae.training.initial import choose
from temporal_vae.training.log import Watch
from temporal_vae.training.step import Learner, any_process
from temporal_vae.video.report import peak_memory

CONFIG = "config.yaml"
_LOSS_STEPS = 10  # that the average of the loss looks back on
_EXPLODED = 10  # times the lowest
_WORSE = 3.0  # dB below the best
_SCALE_BATCHES = 4  # of training data, for the scale of latents


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        finished: whether all steps are done; else the same call goes on.
        signal: that ended it early, if one did.
        report: what `report.json` holds.
    """

    finished: bool
    signal: int | None
    report: dict[str, Any]


def train(config: TrainConfig, *, quiet: bool = False, allow_change: Sequence[str] = ()) -> Outcome:
    """Train as `config` says, from the last checkpoint in its `output` where there is one.

    Writes to that folder: `config.yaml`, `checkpoints/`, `model/` at the end (the averaged weights, as
    `from_pretrained` takes them), `sheets/`, `tensorboard/` and `report.json`. Under `accelerate launch` every process
    calls it.

    Args:
        config: all of the run.
        quiet: print nothing but errors.
        allow_change: names of values, such as `optimizer.learning_rate`, that may differ from those of the run in
            `output`; from its last checkpoint on the new ones hold.

    Raises:
        ConfigError: a configuration that contradicts itself, the machine, or the run in `output`.
        CheckpointError: a model that cannot be loaded, or a checkpoint that cannot be resumed from.
        MediaError: nothing to learn from can be read.
        TrainingError: too many steps in a row without a finite loss, another run in that folder, a full disk.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda': torch sees none on this machine; use auto or cpu")
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision="no")
    output = Path(config.output)
    first = accelerator.is_main_process
    if first:
        _make_folder(output)
    accelerator.wait_for_everyone()
    with locked(output) if first else nullcontext():
        found = _prepare_output(output, config, first, allow_change)
        accelerator.wait_for_everyone()
        with (
            Interrupts() as interrupts,
            Watch(output, steps=config.steps, shown=first, quiet=quiet) as watch,
        ):
            return _Run(config, accelerator, watch, interrupts, found).run()


class _Run:
    """One sitting of a run."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        watch: Watch,
        interrupts: Interrupts,
        found: Path | None,
    ) -> None:
        self._config, self._accelerator = config, accelerator
        self._watch, self._interrupts = watch, interrupts
        self._output = Path(config.output)
        vae = initial.begin(config)
        self._clips = Clips(config, rank=accelerator.process_index, multiple=vae.spatial_factor)
        self._samples, faults = validation.samples(config.validation)
        if found is None and config.model.linear_start is not None:
            error = initial.start_linear(vae, config, config.model.linear_start)
            watch.say(f"linear start: error {error:.5f}")
        names = choose(vae, config.train)
        self._learner = Learner(config, vae, names, accelerator)
        self._state = self._learner.state
        if found is not None:
            checkpoint.restore(self._state, found)
            self._learner.restored()
            watch.say(f"resumed from {found} at step {self._counters.step}")
        learning = sum(vae.get_parameter(name).numel() for name in names)
        watch.say(f"{learning:,} of {sum(p.numel() for p in vae.parameters()):,} parameters learn")
        self._figures: list[validation.Figures] = []
        self._last_psnr: float | None = None
        self._note({**dict(self._clips.faults), **faults})

    @property
    def _counters(self) -> checkpoint.Counters:
        return self._state.counters

    def run(self) -> Outcome:
        """Train to the last step or to a signal."""
        config, counters = self._config, self._counters
        if counters.step == 0 and self._samples:
            self._validate()
        batches = load(
            self._clips,
            first=counters.step * config.optimizer.accumulate,
            workers=config.data.workers,
            device=self._accelerator.device,
        )
        stopped = False
        while counters.step < config.steps and not stopped:
            self._step(batches)
            stopped = any_process(self._accelerator, self._interrupts.received is not None)
            last = counters.step == config.steps
            if self._samples and (last or counters.step % config.validation.every == 0):
                self._validate()
                self._save()
            elif last or stopped or counters.step % config.checkpoints.every == 0:
                self._save()
        if not stopped:
            self._write_model()
        else:
            self._watch.say(f"stopped at step {counters.step} and saved; the same command goes on from there")
        warnings = self._warnings()
        for warning in warnings:
            self._watch.say(f"warning: {warning}")
        figures = [asdict(each) for each in self._figures]
        facts = {"config": asdict(config), "validation": figures, "warnings": warnings}
        report = self._watch.report(counters, facts, peak_memory(self._accelerator.device))
        return Outcome(finished=not stopped, signal=self._interrupts.received, report=report)

    def _step(self, batches: Iterator[Any]) -> None:
        counters = self._counters
        began = time.monotonic()
        drawn = [next(batches) for _ in range(self._config.optimizer.accumulate)]
        for each in drawn:
            self._note(dict(each.faults))
            if each.failure:
                raise TrainingError(each.failure)
        values = self._learner.step(drawn)
        counters.step += 1
        counters.frames += sum(len(each.frames) for each in drawn) * self._accelerator.num_processes
        counters.seconds += time.monotonic() - began
        if values is None:
            counters.bad += 1
            counters.bad_in_a_row += 1
            self._watch.say(f"step {counters.step}: left out, its loss is not finite")
            if counters.bad_in_a_row >= self._config.checkpoints.bad_steps:
                raise TrainingError(
                    f"{self._output}: {counters.bad_in_a_row} steps in a row without a finite loss; lower "
                    "optimizer.learning_rate or look at the data, and go on from the last checkpoint"
                )
            return
        counters.bad_in_a_row = 0
        self._follow(values["loss"])
        self._state.update_ema(self._config.ema)
        self._watch.step(counters, values)

    def _follow(self, loss: float) -> None:
        """Keep the moving average of the loss, and say once when it has exploded."""
        counters = self._counters
        before, lowest = counters.recent_loss, counters.lowest_loss
        recent = loss if before is None else before + (loss - before) / _LOSS_STEPS
        counters.recent_loss = recent
        counters.lowest_loss = recent if lowest is None else min(lowest, recent)
        if lowest is not None and before is not None and before <= _EXPLODED * lowest < recent:
            self._watch.say(
                f"step {counters.step}: warning: the loss is {recent / lowest:.0f} times what it was; lower "
                "optimizer.learning_rate"
            )

    def _warnings(self) -> list[str]:
        """What is wrong with a run although all of its numbers are finite."""
        counters, found = self._counters, []
        lowest = counters.lowest_loss
        if lowest and counters.recent_loss is not None and counters.recent_loss > _EXPLODED * lowest:
            found.append(
                f"the loss ended at {counters.recent_loss:.3g}, {counters.recent_loss / lowest:.0f} times the lowest; "
                "lower optimizer.learning_rate"
            )
        best, ended = counters.best_psnr, self._last_psnr
        if best is not None and ended is not None and ended < best - _WORSE:
            folder = checkpoint.folder_of(self._output, counters.best_step or 0) / checkpoint.MODEL
            where = f"in {folder}" if folder.is_dir() else "those that the run began with"
            found.append(f"the weights ended at {ended:.1f} dB; the best, {best:.1f} dB, are {where}")
        return found

    def _validate(self) -> None:
        """Measure the averaged weights; each process takes its share of the samples."""
        accelerator = self._accelerator
        model = self._state.ema_model()
        mine = []
        for number in range(accelerator.process_index, len(self._samples), accelerator.num_processes):
            sample = self._samples[number]
            result = validation.reconstruct(model, sample)
            mine.append((number, validation.measure(sample, result), result))
        found = sorted(gather_object(mine), key=lambda entry: entry[0])
        self._figures = [figures for _, figures, _ in found]
        pairs = [(self._samples[number], result) for number, _, result in found]
        self._watch.validation(self._counters, self._figures, pairs)
        psnr = self._last_psnr = validation.mean_psnr(self._figures)
        if self._counters.best_psnr is None or psnr > self._counters.best_psnr:
            self._counters.best_psnr, self._counters.best_step = psnr, self._counters.step

    def _save(self) -> None:
        counters, config = self._counters, self._config.checkpoints
        for entry in gather_object(list(counters.faults.items())):
            self._note(dict([entry]))
        self._learner.remember()
        if self._accelerator.is_main_process:
            checkpoint.save(self._state, self._output, to_yaml(self._config))
            checkpoint.prune(self._output, keep=config.keep, best=counters.best_step)
        self._accelerator.wait_for_everyone()

    def _write_model(self) -> None:
        """Write the averaged weights, which are those of the last step."""
        if not self._accelerator.is_main_process:
            return
        model = self._state.ema_model()
        if self._config.model.new is not None:
            model.register_to_config(scaling_factor=self._scaling_factor(model))
        target, needed = (
            self._output / checkpoint.MODEL,
            sum(tensor.nbytes for tensor in model.state_dict().values()),
        )
        with checkpoint.disk_errors(target, needed), complete_or_nothing(target) as temporary:
            model.save_pretrained(temporary)
        self._watch.say(f"wrote {self._output / checkpoint.MODEL}")

    @torch.no_grad()
    def _scaling_factor(self, model: AutoencoderKLTemporalDecoder) -> float:
        """One over the deviation of the latents of training frames, to four digits.

        It is what latents are multiplied with so that a diffusion model sees unit deviation.
        """
        drawn = (self._clips[number] for number in range(min(_SCALE_BATCHES, len(self._clips))))
        frames = (to_device(each, model.device) for each in drawn if not each.failure)
        latents = [model.encode(x).latent_dist.mean.flatten() for x in frames]
        return float(f"{1 / torch.cat(latents).std().item():.4g}")

    def _note(self, faults: dict[str, str]) -> None:
        """Say of everything that cannot be read that it is left out, once."""
        for name, reason in faults.items():
            if name not in self._counters.faults:
                self._counters.faults[name] = reason
                self._watch.say(f"left out: {reason}")


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output={output}: cannot be made ({error.strerror}); choose another folder"
        ) from error


def _prepare_output(
    output: Path, config: TrainConfig, first: bool, allow_change: Sequence[str]
) -> Path | None:
    """Write down the configuration of a run; return the checkpoint to go on from, if there is one.

    Raises:
        ConfigError: the folder holds a run with another configuration.
    """
    found = checkpoint.checkpoints(output)
    written = output / CONFIG
    own = found[-1][1] / checkpoint.SETTINGS if found else written
    before = own if own.is_file() else written  # checkpoints of the first releases have none of their own
    if found and before.is_file():
        names = [name for name in differences(read_config(before), config) if name not in allow_change]
        if names:
            options = " ".join(f"--allow-change {name}" for name in names[:3])
            raise ConfigError(
                f"{output}: holds a run with another {', '.join(names[:3])}; choose another output, give the "
                f"configuration in {before}, or let it change ({options})"
            )
    if first:
        for folder in (output, output / checkpoint.FOLDER, output / "sheets"):
            remove_leftovers(folder)
        with complete_or_nothing(written) as temporary:
            temporary.write_text(to_yaml(config))
    return found[-1][1] if found else None
