"""Encode and decode: by the engine where it may, by the modules where it must."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.utils import logging
from torch import Tensor, nn

from temporal_vae.engine import gate, processor, trust
from temporal_vae.engine.gate import Reason
from temporal_vae.engine.networks import Network
from temporal_vae.engine.overheads import MIB
from temporal_vae.engine.planned import Plan
from temporal_vae.engine.planner import plan
from temporal_vae.engine.progress import counter
from temporal_vae.engine.resources import free_memory
from temporal_vae.engine.run import run
from temporal_vae.engine.schedule import Task
from temporal_vae.engine.shared import Peers
from temporal_vae.errors import InputError

VARIABLE = "TEMPORAL_VAE_ENGINE"
"""Environment variable: `auto` lets the engine work where it is trusted, `always` wherever it can, `never` nowhere."""

LEAST_PIXELS = {"torch": 9000, "float32": 9000, "int16": 9000, "bfloat16": 25000}
"""Of all frames of a call on a CPU, by arithmetic: for fewer, packing weights takes longer than the modules do."""

MODULES_TAKE = 2  # times what the engine takes at most: where so much of a GPU is free, the modules fit

logger = logging.get_logger(__name__)


def encode(
    encoder: nn.Module,
    frames: Tensor,
    network: Network,
    *,
    memory_limit: int | None = None,
    workers: int | None = None,
) -> Tensor:
    """Frames `(n, c, h, w)` in [-1, 1] to moments of latents `(n, 2 * z, h/f, w/f)`, before `quant_conv`.

    Args:
        encoder: `model.Encoder`, or what was put in its place.
        frames: in the dtype and on the device of the encoder.
        network: the configuration that the encoder was built with.
        memory_limit: bytes above the loaded model, on a GPU of its memory; None stays within what is free.
        workers: threads, or streams of a GPU; None for as many as torch would use.

    Raises:
        MemoryLimitError: the limit is too small; the message names the smallest that is not.
    """
    if torch.compiler.is_compiling():
        return encoder(frames)
    count, _, height, width = frames.shape
    size = {"num_frames": count, "height": height, "width": width}
    planned = partial(plan_like, "encode", network, frames, workers=workers, **size)
    made = _engine_plan("encode", encoder, frames, network, 1, planned, memory_limit)
    return _computed(lambda: encoder(frames), encoder, frames, made, memory_limit)


def decode(
    decoder: nn.Module,
    latents: Tensor,
    network: Network,
    *,
    num_frames: int | None = None,
    memory_limit: int | None = None,
    workers: int | None = None,
) -> Tensor:
    """Latents `(b*t, z, h, w)` of clips of `num_frames`, or of pictures, to frames `(b*t, c, h*f, w*f)`.

    Args:
        decoder: `model.TemporalDecoder` or `model.Decoder`, or what was put in its place.
        latents: in the dtype and on the device of the decoder.
        network: the configuration that the decoder was built with.
        num_frames: length of a clip; of no meaning where each picture is decoded by itself.
        memory_limit: as in `encode`.
        workers: as in `encode`.

    Returns:
        Frames about [-1, 1].

    Raises:
        MemoryLimitError: the limit is too small; the message names the smallest that is not.
    """
    together = latents.shape[0] if num_frames is None else num_frames

    def by_modules() -> Tensor:
        # As diffusers calls it: one that was put here may be of the published class, or wrap it.
        if not network.temporal:
            return decoder(latents)
        clips = latents.shape[0] // together
        indicator = torch.zeros(clips, together, dtype=latents.dtype, device=latents.device)
        return decoder(latents, num_frames=together, image_only_indicator=indicator)

    if torch.compiler.is_compiling():
        return by_modules()
    height, width = (network.factor * length for length in latents.shape[-2:])
    size = {"num_frames": together, "height": height, "width": width, "clips": latents.shape[0] // together}
    planned = partial(plan_like, "decode", network, latents, workers=workers, **size)
    frames = together if network.temporal else 1
    made = _engine_plan("decode", decoder, latents, network, frames, planned, memory_limit)
    return _computed(by_modules, decoder, latents, made, memory_limit)


def decode_part(
    decoder: nn.Module,
    latents: Tensor,
    network: Network,
    peers: Peers,
    *,
    memory_limit: int | None = None,
    workers: int | None = None,
) -> Tensor:
    """The frames `(n, c, h*f, w*f)` of this rank, of a clip that is shared with others; without gradients.

    Args:
        decoder: `model.TemporalDecoder`.
        latents: `(n, z, h, w)` of the frames that `peers.part` gives this rank.
        network: the configuration that the decoder was built with.
        peers: the ranks, all of which call this.
        memory_limit: as in `encode`, of each rank; the same for all.
        workers: as in `encode`.

    Raises:
        InputError: the decoder was changed so that only modules know what is meant, or the engine is not trusted here.
        MemoryLimitError: the limit is too small for one of the ranks; raised on all of them.
    """
    part = peers.part
    height, width = (network.factor * length for length in latents.shape[-2:])
    size = {"num_frames": sum(part.counts), "height": height, "width": width, "memory_limit": memory_limit}
    choice = _choice()
    with torch.no_grad():
        found = gate.reason(decoder, latents, *gate.built("decode", network)) if choice != "never" else _NEVER
        if choice == "auto":
            for reach in (1, 2):
                frames = part.frames + sum(part.beside(reach))
                found = found or trust.reason("decode", frames, latents.device, latents.dtype)
        if found is not None:
            raise InputError(
                f"a clip is shared by the engine only: {found.text}; {found.remedy}, or use one rank"
            )
        made = plan_like("decode", network, latents, workers=workers, part=part, **size)
        return run(decoder, latents, made, counter(made.work), peers)


def plan_like(
    task: Task, network: Network, like: Tensor, *, workers: int | None = None, **shape: Any
) -> Plan:
    """`plan` for tensors of the dtype and on the device of `like`, with as many threads as torch would use."""
    cpu = like.device.type == "cpu"
    return plan(
        task,
        network,
        dtype=str(like.dtype).removeprefix("torch."),
        device=like.device.type,
        workers=workers or (torch.get_num_threads() if cpu else 2),
        **shape,
    )


def _computed(
    by_modules: Callable[[], Tensor], part: nn.Module, x: Tensor, made: Plan | None, memory_limit: int | None
) -> Tensor:
    """By the modules where there is no plan for the engine, or where they do as well; else by the engine."""
    if made is None:
        return by_modules()
    if _modules_do(x, made, memory_limit):
        found = by_modules()
        if x.dtype != torch.float16 or found.isfinite().all():  # the engine holds what float16 does not
            return found
    return run(part, x, made, counter(made.work))


def _modules_do(x: Tensor, made: Plan, memory_limit: int | None) -> bool:
    """Whether a GPU has the memory that the modules need: until figures from cards are in benchmarks/results."""
    auto = (os.environ.get(VARIABLE) or "auto") == "auto"
    if not auto or memory_limit is not None or x.device.type != "cuda":
        return False
    return MODULES_TAKE * made.peak <= free_memory(x.device)


def _engine_plan(
    task: Task,
    part: nn.Module,
    x: Tensor,
    network: Network,
    frames: int,
    planned: Callable[..., Plan],
    memory_limit: int | None,
) -> Plan | None:
    """How the engine computes a call; None if the modules must, which is said once where it matters."""
    if part is None:  # people free memory so
        raise InputError(f"{task}: the {task}r of this model is None; load the model again to {task}")
    choice = _choice()
    if choice == "auto" and memory_limit is None and _few_pixels(task, x, network):
        return None
    reason = gate.reason(part, x, *gate.built(task, network)) if choice != "never" else _NEVER
    if reason is None and choice == "auto":
        reason = trust.reason(task, frames, x.device, x.dtype, temporal=network.temporal)
    if reason is not None:
        _say(task, part, reason, limited=memory_limit is not None)
        return None
    if memory_limit is not None:
        return planned(memory_limit=memory_limit)
    unlimited, free = planned(), free_memory(x.device)
    if unlimited.peak <= free:
        return unlimited
    # Where too little is free, the smallest plan.
    return planned(memory_limit=max(free // MIB * MIB, min(offer.peak for offer in unlimited.ladder)))


def _choice() -> str:
    """Where the engine may work, by the environment."""
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in ("auto", "always", "never"):
        raise InputError(f"{VARIABLE}={choice}: must be auto, always or never")
    return choice


def _few_pixels(task: Task, x: Tensor, network: Network) -> bool:
    """Whether the modules are done with a call before the engine would be."""
    device, dtype = x.device.type, str(x.dtype).removeprefix("torch.")
    if not processor.torch_is_fast(device, dtype) or torch._C._get_tracing_state() is not None:
        return False
    scale = network.factor**2 if task == "decode" else 1
    return x.shape[0] * x.shape[-2] * x.shape[-1] * scale < LEAST_PIXELS[processor.arithmetic(device, dtype)]


_NEVER = Reason(f"{VARIABLE} is never", f"unset {VARIABLE}", ordinary=True)
_said: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # of which part what was said


def _say(task: Task, part: nn.Module, reason: Reason, *, limited: bool) -> None:
    """Say once that the modules run, where anybody need be told."""
    if limited:
        message = f"{task}: the memory limit is not kept, since the plain modules run: {reason.text}; {reason.remedy}"
    elif not reason.ordinary:
        message = f"{task}: the plain modules run, without the engine: {reason.text}"
    else:
        return
    said = _said.setdefault(part, set())
    if message not in said:
        said.add(message)
        logger.warning(message)
