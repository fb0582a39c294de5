"""Clips and pictures by all ranks of a group: `decode_sharded`, `encode_sharded`, and the plan of both.

Whole clips are spread first, which takes no communication. A clip that is shared is cut into consecutive frames;
spatial work needs nothing from others, a convolution over time a frame from each neighbour, and a norm over time the
moments of all ranks, merged in their order in float64, so that every rank normalises by the same bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import logging
from torch import Tensor

from temporal_vae import engine
from temporal_vae.amounts import MemoryLimit, parse_memory
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.distributed.clip.plans import ShardedPlan, held_before, plan_ranks
from temporal_vae.distributed.clip.ranks import TIMEOUT, Ranks, together
from temporal_vae.distributed.clip.shares import Share, spread
from temporal_vae.model.checks import channels_into, check_frames, check_latents

logger = logging.get_logger(__name__)


def plan_sharded(
    vae: Autoencoder,
    *,
    ranks: int,
    num_frames: int,
    height: int,
    width: int,
    clips: int = 1,
    task: engine.Task = "decode",
    memory_limit: MemoryLimit = None,
) -> ShardedPlan:
    """How ranks would share clips of `num_frames` frames of `height` x `width` pixels; nothing is computed.

    Args:
        vae: the model.
        ranks: how many.
        num_frames: length of a clip; the number of pictures where each is computed by itself.
        height: of the frames in pixels; for decoding a multiple of `vae.spatial_factor`.
        width: of the frames in pixels.
        clips: how many there are.
        task: `"decode"` or `"encode"`.
        memory_limit: of each rank, bytes above the loaded model or an amount as `"4GiB"`.

    Raises:
        InputError: a size that no latents have, or a count below 1.
        MemoryLimitError: a limit that is too small for one of the ranks.
    """
    like, cpu = next(vae.parameters()), vae.device.type == "cpu"
    return plan_ranks(
        task, vae.network, ranks=ranks, num_frames=num_frames, height=height, width=width, clips=clips,
        dtype=str(like.dtype).removeprefix("torch."), device=vae.device.type,
        memory_limit=vae._limit(memory_limit), workers=torch.get_num_threads() if cpu else 2,
    )  # fmt: skip


def decode_sharded(
    vae: Autoencoder,
    z: Tensor,
    *,
    num_frames: int,
    group: Any = None,
    gather: bool = True,
    memory_limit: MemoryLimit = None,
    timeout: float = TIMEOUT,
) -> Tensor:
    """Decode latents by all ranks of a group, to the frames that one process gives; without gradients.

    All ranks call this with the same model and the same latents. What each of them computes, `plan_sharded` tells.

    Args:
        vae: the model, on each rank on its own device.
        z: unscaled latents `(b*t, z, h, w)`, the frames of each clip one after the other.
        num_frames: `t`, the length of a clip. Image autoencoders decode each picture by itself; give 1.
        group: of `torch.distributed`; None is all ranks.
        gather: give every rank all frames, on top of the limit; if False, each keeps those that it computed.
        memory_limit: of each rank, bytes above the loaded model or an amount as `"4GiB"`.
        timeout: seconds that a rank may give no sign of life, or come no further.

    Returns:
        Frames about [-1, 1]: `(b*t, c, h*f, w*f)`, or without `gather` those of this rank in the order of
        `plan_sharded(...).ranks[rank].frames`.

    Raises:
        InputError: no group of ranks; latents that do not fit, or differ between ranks; a decoder that was changed so
            that only its modules know what is meant.
        MemoryLimitError: a limit that is too small; raised on all ranks.
        RankError: another rank died, failed or stands still; the message names it. The group is of no use any more.
    """
    check_latents(z, num_frames, channels=channels_into(vae.decoder))
    if not vae.network.temporal:
        num_frames = 1
    factor = vae.spatial_factor
    size = {"height": factor * z.shape[-2], "width": factor * z.shape[-1], "clips": len(z) // num_frames}
    with together(group, timeout=timeout) as ranks, torch.no_grad():
        _agree(ranks, vae, z, {"num_frames": num_frames, "memory_limit": memory_limit})
        limit = limit_of_all(vae, ranks, memory_limit, num_frames=num_frames, **size)
        found = spread("decode", vae.network, len(z), num_frames, ranks.count)
        _say_idle(found, len(z))
        empty = z.new_empty((0, vae.config.out_channels, size["height"], size["width"]))

        def compute(share: Share, held: int) -> Tensor:
            left = None if limit is None else limit - held
            return decode_share(vae, share.of(z), share, num_frames, ranks, left)

        return _computed(compute, ranks, found, num_frames, empty, gather=gather)


def encode_sharded(
    vae: Autoencoder,
    x: Tensor,
    *,
    group: Any = None,
    gather: bool = True,
    memory_limit: MemoryLimit = None,
    timeout: float = TIMEOUT,
) -> DiagonalGaussianDistribution:
    """Encode frames by all ranks of a group, each some of them: an encoder sees every frame by itself.

    Args:
        vae: as in `decode_sharded`.
        x: frames `(n, c, h, w)` in [-1, 1], the same on all ranks.
        group: as in `decode_sharded`.
        gather: as in `decode_sharded`.
        memory_limit: as in `decode_sharded`.
        timeout: as in `decode_sharded`.

    Returns:
        The posterior over unscaled latents `(n, z, h/f, w/f)`, or without `gather` of the frames of this rank.

    Raises:
        InputError, MemoryLimitError, RankError: as `decode_sharded`.
    """
    check_frames(x, channels=channels_into(vae.encoder), smallest=vae.spatial_factor)
    height, width = x.shape[-2:]
    with together(group, timeout=timeout) as ranks, torch.no_grad():
        _agree(ranks, vae, x, {"memory_limit": memory_limit})
        limit = limit_of_all(
            vae, ranks, memory_limit, task="encode", num_frames=len(x), height=height, width=width
        )
        found = spread("encode", vae.network, len(x), 1, ranks.count)
        _say_idle(found, len(x))
        channels, factor = 2 * vae.config.latent_channels, vae.spatial_factor
        empty = x.new_empty((0, channels, height // factor, width // factor))

        def compute(share: Share, held: int) -> Tensor:
            return vae.encode(share.of(x), memory_limit=limit).latent_dist.parameters

        moments = _computed(compute, ranks, found, 1, empty, gather=gather)
    return DiagonalGaussianDistribution(moments)


def decode_share(
    vae: Autoencoder, own: Tensor, share: Share, num_frames: int, ranks: Ranks, memory_limit: MemoryLimit
) -> Tensor:
    """The frames of one share, of its latents."""
    if share.part is None:
        length = {"num_frames": num_frames} if vae.network.temporal else {}
        frames: Tensor = vae.decode(own, **length, memory_limit=memory_limit).sample
        return frames
    peers = ranks.share(share.part, share.ranks)
    return engine.decode_part(vae.decoder, own, vae.network, peers, memory_limit=vae._limit(memory_limit))


def limit_of_all(vae: Autoencoder, ranks: Ranks, memory_limit: MemoryLimit, **size: Any) -> int | None:
    """The limit under which all ranks work: what is free is shared by those of a machine, if it is too little for all.

    Raises:
        InputError, MemoryLimitError: as `plan_sharded`, on all ranks.
    """
    limit = vae._limit(memory_limit)
    plan = plan_sharded(vae, ranks=ranks.count, memory_limit=limit, **size)
    if limit is not None or vae.device.type not in engine.DEVICES:
        return limit
    free = min(ranks.free_memory(vae.device))
    peak = max(rank.peak for rank in plan.ranks)
    if peak <= free:
        return None
    return max(free, *(rank.least for rank in plan.ranks))


def _say_idle(shares: list[list[Share]], count: int) -> None:
    """Tell of ranks that have nothing to do."""
    idle = [str(rank) for rank, own in enumerate(shares) if not own]
    if idle:
        logger.warning("%d ranks for %d frames: idle are ranks %s", len(shares), count, ", ".join(idle))


def agree_on_model(ranks: Ranks, vae: Autoencoder, asked: dict[str, Any]) -> None:
    """Raise `InputError` on all ranks unless they are about to do the same with the same model."""
    if asked["memory_limit"] is not None:
        asked["memory_limit"] = parse_memory(asked["memory_limit"])
    ranks.agree("what is asked for", json.dumps({**asked, "dtype": str(vae.dtype)}, sort_keys=True).encode())
    weights = torch.cat([parameter.detach().flatten()[:4].float() for parameter in vae.parameters()])
    ranks.agree("the model", weights.cpu().numpy().tobytes())


def _agree(ranks: Ranks, vae: Autoencoder, x: Tensor, asked: dict[str, Any]) -> None:
    """See that all ranks have the same batch, too."""
    agree_on_model(ranks, vae, {**asked, "shape": list(x.shape), "type": str(x.dtype)})
    digest = hashlib.sha256()
    for frame in x.detach():  # no copy of a whole batch
        digest.update(frame.cpu().flatten().view(torch.uint8).numpy())
    ranks.agree("the batch", digest.digest())


def _computed(
    compute: Callable[[Share, int], Tensor],
    ranks: Ranks,
    shares: list[list[Share]],
    num_frames: int,
    empty: Tensor,
    *,
    gather: bool,
) -> Tensor:
    """What this rank computes, or all of them, in the order of the batch; `empty` has the shape of no frames.

    `compute` is told the bytes that are held already. Of whole clips that others follow, each is put in its place by
    itself, so that no more than one is there twice.
    """
    own = shares[ranks.rank]
    if len(own) == 1 and not gather:
        with ranks.working():
            return compute(own[0], 0)
    pieces = [piece for share in own for piece in (share.clips(num_frames) if len(own) > 1 else [share])]
    held = held_before(pieces, prod(empty.shape[1:]) * empty.itemsize, empty.device.type)
    count = sum(len(share.frames) for some in (shares if gather else [own]) for share in some)
    result, at = empty, 0
    with ranks.working():
        for piece, before in zip(pieces, held, strict=True):
            frames = compute(piece, before)
            result = result if at else empty.new_empty((count, *empty.shape[1:]))
            start = piece.frames.start if gather else at
            result[start : start + len(frames)] = frames
            at += len(frames)
            del frames
    if gather:
        result = result if at else empty.new_empty((count, *empty.shape[1:]))
        _exchange(ranks, result, shares)
    return result


def _exchange(ranks: Ranks, result: Tensor, shares: list[list[Share]]) -> None:
    """Give all ranks what this one put into the result of all, and get what they did."""
    sent: list[tuple[int, Tensor]] = []
    received: list[tuple[int, Tensor]] = []
    for rank, theirs in enumerate(shares):
        if rank != ranks.rank:
            sent += [(rank, share.of(result)) for share in shares[ranks.rank]]
            received += [(rank, share.of(result)) for share in theirs]
    ranks.exchange(sent, received)()
