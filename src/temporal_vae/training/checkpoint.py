"""All that changes while a run trains, and its checkpoints: folders that are complete or not there.

    OUTPUT/checkpoints/step-00000200/state.safetensors    weights, averages, optimizers; counters as JSON
    OUTPUT/checkpoints/step-00000200/model/               the averaged weights, as `from_pretrained` takes them

Random numbers need no place in it: every step seeds its own from its number.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.errors import CheckpointError, MediaError, TrainingError, one_line
from temporal_vae.outputs import complete_or_nothing

FOLDER = "checkpoints"
STATE = "state.safetensors"
MODEL = "model"
SETTINGS = "config.yaml"
_PREFIX = "step-"


@dataclass(kw_only=True)
class Counters:
    """The numbers of a run.

    Attributes:
        step: steps done, those with a bad loss included.
        bad: steps that were left out because a loss was not finite.
        bad_in_a_row: the last so many.
        frames: that were learnt from, in all processes.
        seconds: of training, over all sittings.
        best_step: step of the checkpoint with the best validation.
        best_psnr: its figure in dB.
        scale: of losses in float16.
        scale_age: steps since it last changed.
        recent_loss: moving average of the loss.
        lowest_loss: the least that average was.
        faults: items that could not be read, and why.
    """

    step: int = 0
    bad: int = 0
    bad_in_a_row: int = 0
    frames: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_psnr: float | None = None
    scale: float = 65536.0
    scale_age: int = 0
    recent_loss: float | None = None
    lowest_loss: float | None = None
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class State:
    """Models, optimizers and counters of a run.

    Attributes:
        vae: what learns, in float32.
        ema: moving averages of the parameters that learn, by name; empty where nothing is averaged.
        optimizer: of the autoencoder.
        discriminator: of the adversary, if there is one.
        discriminator_optimizer: likewise.
        counters: numbers.
    """

    vae: AutoencoderKLTemporalDecoder
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    discriminator: nn.Module | None = None
    discriminator_optimizer: torch.optim.Optimizer | None = None
    counters: Counters = field(default_factory=Counters)

    def update_ema(self, decay: float) -> None:
        """Move the averages towards the weights; the first steps count more, so that the start is soon forgotten."""
        if not self.ema:
            return
        step = self.counters.step
        weights = dict(self.vae.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.ema.values()),
                [weights[name].detach() for name in self.ema],
                1 - min(decay, (1 + step) / (10 + step)),
            )

    def ema_model(self) -> AutoencoderKLTemporalDecoder:
        """The model with the averaged weights, in eval mode; it shares them, so it is good until the next step."""
        with torch.device("meta"):
            model: AutoencoderKLTemporalDecoder = AutoencoderKLTemporalDecoder.from_config(self.vae.config)
        model.load_state_dict({**self.vae.state_dict(), **self.ema}, assign=True)
        return model.eval()


def save(state: State, output: Path, settings: str = "") -> Path:
    """Write a checkpoint of the present step, with the settings of the run; returns its folder.

    It is written under another name, flushed to the disk and renamed, so that a process that is killed leaves either
    the whole of it or nothing that counts.

    Raises:
        TrainingError: the disk does not take it.
    """
    folder = output / FOLDER
    target = folder_of(output, state.counters.step)
    tensors = {name: value.detach().cpu().contiguous() for name, value in _tensors(state)}
    needed = sum(tensor.nbytes for name, tensor in tensors.items()) + sum(
        tensor.nbytes for tensor in state.vae.state_dict().values()
    )
    with disk_errors(target, needed):
        folder.mkdir(parents=True, exist_ok=True)
        with complete_or_nothing(target) as temporary:
            state.ema_model().save_pretrained(temporary / MODEL)
            save_file(tensors, temporary / STATE, metadata={"counters": json.dumps(asdict(state.counters))})
            (temporary / SETTINGS).write_text(settings)
            for file in temporary.rglob("*"):
                _flush(file)
        _flush(folder)
    return target


@contextmanager
def disk_errors(target: Path, needed: int) -> Iterator[None]:
    """Say in one line of `TrainingError` that the disk does not take `target`, which needs so many bytes."""
    try:
        yield
    except (OSError, SafetensorError, MediaError) as error:
        free = shutil.disk_usage(target.parent if target.parent.is_dir() else target.parent.parent).free
        raise TrainingError(
            f"{target}: can't be written ({one_line(error)[:200]}); {needed / 1e6:,.0f} MB are needed and "
            f"{free / 1e6:,.0f} MB free: make room and give the same command again, the checkpoint before is whole"
        ) from error


def restore(state: State, folder: Path) -> None:
    """Bring `state` to what `save` wrote into `folder`.

    Raises:
        CheckpointError: it cannot be read, or is of another run.
    """
    file = folder / STATE
    try:
        with safe_open(file, framework="pt") as tensors:
            counters = Counters(**json.loads(tensors.metadata()["counters"]))
            found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        _load(state.vae, "vae", state.optimizer, found)
        if state.discriminator is not None and state.discriminator_optimizer is not None:
            _load(state.discriminator, "discriminator", state.discriminator_optimizer, found)
        for name, value in state.ema.items():
            value.copy_(found[f"averaged.{name}"])
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = one_line(error)[:200]
        raise CheckpointError(
            f"{file}: cannot be resumed from ({reason}); remove that folder to go on from the one before"
        ) from error
    state.counters = counters


def folder_of(output: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return output / FOLDER / f"{_PREFIX}{step:08d}"


def checkpoints(output: Path) -> list[tuple[int, Path]]:
    """Step and folder of every complete checkpoint of a run, the oldest first."""
    found = (output / FOLDER).glob(f"{_PREFIX}*") if (output / FOLDER).is_dir() else ()
    numbers = ((path.name.removeprefix(_PREFIX), path) for path in found if (path / STATE).is_file())
    return sorted((int(number), path) for number, path in numbers if number.isdecimal())


def prune(output: Path, *, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the last `keep` and that of step `best`, and what a killed process left behind."""
    for step, path in checkpoints(output)[:-keep]:
        if step != best:
            shutil.rmtree(path)
    for path in (output / FOLDER).glob(".*.part"):
        shutil.rmtree(path, ignore_errors=True)


def _tensors(state: State) -> Iterator[tuple[str, Tensor]]:
    yield from _of_module(state.vae, "vae", state.optimizer)
    if state.discriminator is not None and state.discriminator_optimizer is not None:
        yield from _of_module(state.discriminator, "discriminator", state.discriminator_optimizer)
    for name, value in state.ema.items():
        yield f"averaged.{name}", value


def _of_module(
    module: nn.Module, prefix: str, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state_dict().items():
        yield f"{prefix}.{name}", value
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{key}.{prefix}.{name}", value


def _load(module: nn.Module, prefix: str, optimizer: torch.optim.Optimizer, found: dict[str, Tensor]) -> None:
    """Copy weights and moments into place; moments get the memory layout that the optimizer would give them."""
    start = f"{prefix}."
    module.load_state_dict({k.removeprefix(start): v for k, v in found.items() if k.startswith(start)})
    parameters = {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}
    for name, value in found.items():
        kind, _, rest = name.partition(".")
        key, _, owner = rest.partition(".")
        if kind == "optimizer" and owner in parameters:
            parameter = parameters[owner]
            moment = value if value.ndim == 0 else torch.empty_like(parameter).copy_(value)
            optimizer.state[parameter][key] = moment


def _flush(path: Path) -> None:
    """Make sure that the disk has a file, or the names in a folder."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders cannot be opened on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_LOCK = ".lock"


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        TrainingError: another process trains there; the message says which.
    """
    with (output / _LOCK).open("a+") as file:
        if not _try(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise TrainingError(
                f"{output}: {holder} trains there; wait for its end, or choose another output"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _try(file: IO[str]) -> bool:
    """Take the lock, unless another process has it. A record lock: forked workers do not inherit it."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2**30)  # far behind what is written there
        else:
            import msvcrt

            file.seek(2**30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    return True
