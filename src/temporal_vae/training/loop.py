"""The training loop: one step, averaged weights, checkpoints, resume.

A run interrupted at any moment and started again ends in the same weights, bit for bit: batches and noise depend on the
number of the step alone, and a checkpoint holds all that a step changes.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder
from temporal_vae.errors import CheckpointError
from temporal_vae.training.data import Sampler
from temporal_vae.training.linear import LinearAutoencoder, keep_constants, plant, train_linear
from temporal_vae.training.recipe import Recipe

Report = Callable[[str], None]

_LINEAR_BATCHES = 2**32  # numbers of the linear start's batches begin here, past those of the full network


@dataclass(kw_only=True)
class Run:
    """All that changes while training."""

    vae: AutoencoderKLTemporalDecoder
    averaged: dict[str, Tensor]  # moving averages of the weights: what is validated and shipped
    optimizer: torch.optim.Adam
    step: int  # steps done


def train(
    recipe: Recipe,
    sampler: Sampler,
    *,
    checkpoint: Path,
    validate: Callable[[AutoencoderKLTemporalDecoder], str],
    report: Report,
) -> AutoencoderKLTemporalDecoder:
    """Train by `recipe`, from `checkpoint` where it exists, and return the averaged model.

    Args:
        recipe: every number.
        sampler: where batches come from.
        checkpoint: safetensors file that is written again and again; the training resumes from it.
        validate: measures a model; the answer is reported.
        report: takes a line of progress.

    Raises:
        CheckpointError: `checkpoint` cannot be read or belongs to another recipe.
    """
    run = new_run(recipe)
    if checkpoint.exists():
        load_run(run, checkpoint)
        report(f"resumed from {checkpoint} at step {run.step}")
    else:
        error = start_linear(run, recipe, sampler)
        save_run(run, checkpoint)
        report(f"linear start: error {error:.5f}; {validate(averaged_model(run, recipe))}")
    losses: list[float] = []
    while run.step < recipe.steps:
        losses.append(training_step(run, recipe, sampler))
        if run.step % recipe.save_every == 0 or run.step == recipe.steps:
            save_run(run, checkpoint)
            report(f"step {run.step}/{recipe.steps}: loss {sum(losses) / len(losses):.5f}")
            losses.clear()
        if run.step % recipe.validate_every == 0 or run.step == recipe.steps:
            report(f"step {run.step}: {validate(averaged_model(run, recipe))}")
    return averaged_model(run, recipe)


def new_run(recipe: Recipe) -> Run:
    """A network with random weights, and an optimizer that has seen nothing."""
    torch.manual_seed(recipe.seed)
    vae = new_model(recipe).train()
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep_constants(vae)
    optimizer = torch.optim.Adam(vae.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    return Run(vae=vae, averaged=_copy(vae), optimizer=optimizer, step=0)


def new_model(recipe: Recipe) -> AutoencoderKLTemporalDecoder:
    """The recipe's network, with random weights."""
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * len(recipe.block_out_channels),
        block_out_channels=recipe.block_out_channels,
        layers_per_block=recipe.layers_per_block,
        latent_channels=recipe.latent_channels,
    )


def averaged_model(run: Run, recipe: Recipe) -> AutoencoderKLTemporalDecoder:
    """A model with the run's averaged weights, in eval mode."""
    vae = new_model(recipe)
    vae.load_state_dict(run.averaged)
    return vae.eval()


def start_linear(run: Run, recipe: Recipe, sampler: Sampler) -> float:
    """Train a linear autoencoder and plant it in the run's network; returns its mean squared error."""
    crops = sampler.batch(_LINEAR_BATCHES, clips=recipe.linear_crops, frames=1, size=recipe.linear_size)
    generator = torch.Generator().manual_seed(recipe.seed)
    linear = LinearAutoencoder(
        channels=crops.shape[1],
        latent_channels=recipe.latent_channels,
        levels=len(recipe.block_out_channels),
    )
    linear.start_from_components(crops[:256])
    linear.balance(crops[:256])
    error = train_linear(
        linear,
        lambda: crops[torch.randint(len(crops), (recipe.linear_batch,), generator=generator)],
        steps=recipe.linear_steps,
        learning_rate=recipe.linear_learning_rate,
    )
    linear.balance(crops[:256])
    plant(linear, run.vae, logvar=recipe.logvar)
    run.averaged = _copy(run.vae)
    return error


def training_step(run: Run, recipe: Recipe, sampler: Sampler) -> float:
    """One batch forth and back; returns its loss."""
    phase = recipe.phase(run.step)
    draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + run.step)
    choice = int(torch.randint(len(phase.clip_lengths), (), generator=draw))
    length = phase.clip_lengths[choice]
    frames = sampler.batch(run.step, clips=phase.frames // length, frames=length, size=phase.size)
    with torch.autocast("cpu", torch.bfloat16):
        moments = run.vae.quant_conv(run.vae.encoder(frames)).float()
        mean, logvar = moments.chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=draw)
        latents = mean + noise * torch.exp(logvar.clamp(-30, 20) / 2)
        output = run.vae.decoder(latents, num_frames=length).float()
    loss = reconstruction_loss(output, frames, length, recipe) + recipe.kl_weight * kl(mean, logvar)
    run.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.vae.parameters(), recipe.gradient_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(recipe, run.step)
    run.optimizer.step()
    run.step += 1
    decay = min(recipe.ema, run.step / (run.step + 10))
    with torch.no_grad():
        for name, value in run.vae.state_dict().items():
            run.averaged[name].lerp_(value, 1 - decay)
    return loss.item()


def reconstruction_loss(output: Tensor, frames: Tensor, length: int, recipe: Recipe) -> Tensor:
    """Charbonnier loss of frames, plus that of the differences of neighbouring frames of a clip.

    Args:
        output: `(b*t, c, h, w)`, in [-1, 1] or nearly.
        frames: the same, true.
        length: t.
        recipe: weights.
    """
    error = output - frames
    loss = _charbonnier(error, recipe.charbonnier)
    if length > 1:
        motion = error.unflatten(0, (-1, length)).diff(dim=1)
        loss = loss + recipe.motion_weight * _charbonnier(motion, recipe.charbonnier)
    return loss


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean divergence of the posterior from a standard normal distribution, in nats per latent number."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to the final rate."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    low, high = recipe.final_learning_rate, recipe.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


def save_run(run: Run, checkpoint: Path) -> None:
    """Write all of `run` to one safetensors file, under another name first."""
    tensors = {f"model.{name}": value for name, value in run.vae.state_dict().items()}
    tensors |= {f"averaged.{name}": value for name, value in run.averaged.items()}
    for name, parameter in run.vae.named_parameters():
        state = run.optimizer.state.get(parameter)
        if state:  # a parameter that takes no part, like the resting attention, has none
            tensors[f"exp_avg.{name}"] = state["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = state["exp_avg_sq"]
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    unfinished = checkpoint.with_suffix(".tmp")
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(contiguous, unfinished, metadata={"run": json.dumps({"step": run.step})})
    os.replace(unfinished, checkpoint)


def load_run(run: Run, checkpoint: Path) -> None:
    """Bring `run` to the state that `save_run` wrote; `CheckpointError` if it does not fit."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            step = json.loads(file.metadata()["run"])["step"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        run.vae.load_state_dict(_part(tensors, "model."))
        run.averaged = _part(tensors, "averaged.")
        first, second = _part(tensors, "exp_avg."), _part(tensors, "exp_avg_sq.")
        for name, parameter in run.vae.named_parameters():
            if name in first:
                run.optimizer.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": torch.empty_like(parameter).copy_(first[name]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(second[name]),
                }
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint}: is no checkpoint of this recipe: {str(error).splitlines()[0]}; "
            "choose another --output or remove it"
        ) from error
    run.step = step


def _charbonnier(error: Tensor, scale: float) -> Tensor:
    return (error.square() + scale**2).sqrt().mean() - scale


def _copy(vae: AutoencoderKLTemporalDecoder) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in vae.state_dict().items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
