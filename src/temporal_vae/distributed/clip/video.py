"""Video files through the model by all ranks: one leads, which reads, writes and shows progress; the others follow.

The leader says what comes next, sends each rank its frames or latents, computes its own share, and gathers what the
others made. Frames travel as the bytes that are read and written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from temporal_vae import engine
from temporal_vae.amounts import MemoryLimit
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.distributed.clip.ranks import Message, Ranks
from temporal_vae.distributed.clip.sharded import agree_on_model, decode_share, limit_of_all
from temporal_vae.distributed.clip.shares import Share, spread
from temporal_vae.media.frames import Frames, crop_to, pad_to_multiple
from temporal_vae.video.coder import Coder, to_frames, to_tensor
from temporal_vae.video.work import Progress

LEADER = 0
_HEADER = 512  # bytes of what the leader says of a round
_END = {"task": "end"}


class ShardedCoder(Coder):
    """A coder that shares its work with other ranks; in the leader it is used as any other.

    Clips are decoded as many together as there are ranks, so that each takes one of its own while there are enough.
    """

    def __init__(
        self,
        vae: Autoencoder,
        height: int,
        width: int,
        *,
        ranks: Ranks,
        memory_limit: MemoryLimit = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(vae, height, width, memory_limit=memory_limit, progress=progress)
        self._ranks = ranks
        self.clips_together = ranks.count

    @property
    def together(self) -> int:
        """How many frames are encoded together: as many as the engine takes at once, of each rank."""
        return super().together * self._ranks.count

    def decode_work(self, frames: int) -> int:
        """Multiply-adds to decode a clip of so many frames by one rank."""
        height, width = self._padded
        like = next(self._vae.parameters())
        size = {"num_frames": frames, "height": height, "width": width}
        return engine.plan_like("decode", self._vae.network, like, **size).work

    def encode(self, frames: Frames) -> DiagonalGaussianDistribution:
        """Posterior of frames `(t, h, w, 3)`, on the CPU."""
        padded = torch.from_numpy(pad_to_multiple(frames, self._vae.spatial_factor))
        return DiagonalGaussianDistribution(self._lead("encode", padded, 1, self.encode_work(len(frames))))

    def decode(self, latents: Tensor) -> Frames:
        """Frames `(t, h, w, 3)` of a clip of latents `(t, z, h/f, w/f)`, or of pictures."""
        return self.decode_clips([latents])[0]

    def decode_clips(self, latents: Sequence[Tensor]) -> list[Frames]:
        """Frames of several clips."""
        found: list[Frames] = []
        for length, some in groupby(latents, key=len):
            clips = list(some)
            batch = torch.cat(clips).cpu().to(self._vae.dtype)
            work = len(clips) * self.decode_work(length)
            frames = self._lead("decode", batch, length, work).numpy()
            found += [frames[start : start + length] for start in range(0, len(frames), length)]
        return found

    def follow(self, header: dict[str, Any]) -> None:
        """Take part in what the leader began."""
        task, num_frames, shape = header["task"], header["num_frames"], header["shape"]
        own = self._spread(task, shape[0], num_frames)[self._ranks.rank]
        dtype = torch.uint8 if task == "encode" else self._vae.dtype
        parts = [torch.empty((len(share.frames), *shape[1:]), dtype=dtype) for share in own]
        self._ranks.exchange([], [(LEADER, part) for part in parts])()
        results = self._compute(task, own, parts, num_frames, shape)
        self._ranks.exchange([(LEADER, result) for result in results], [])()

    def _lead(self, task: engine.Task, batch: Tensor, num_frames: int, work: int) -> Tensor:
        """What all ranks make of a batch."""
        header = {
            "task": task,
            "num_frames": num_frames,
            "shape": list(batch.shape),
            "size": list(self._shown),
        }
        _tell(self._ranks, header)
        shares = self._spread(task, len(batch), num_frames)
        others = [(rank, share) for rank, own in enumerate(shares) if rank != LEADER for share in own]
        self._ranks.exchange([(rank, share.of(batch)) for rank, share in others], [])()
        own = shares[LEADER]
        parts = [share.of(batch) for share in own]
        results = self._compute(task, own, parts, num_frames, batch.shape, work)
        found = results[0].new_empty((len(batch), *results[0].shape[1:]))
        for share, result in zip(own, results, strict=True):
            share.of(found).copy_(result)
        coming: list[Message] = [(rank, share.of(found)) for rank, share in others]
        self._ranks.exchange([], coming)()
        return found

    @torch.inference_mode()
    def _compute(
        self,
        task: engine.Task,
        own: Sequence[Share],
        parts: Iterable[Tensor],
        num_frames: int,
        shape: Sequence[int],
        work: int = 0,
    ) -> list[Tensor]:
        """The results of this rank's shares, on the CPU: uint8 frames, or moments of latents."""
        height, width = self._padded
        size = {"num_frames": num_frames, "clips": shape[0] // num_frames, "height": height, "width": width}
        limit = limit_of_all(self._vae, self._ranks, self._limit, task=task, **size)
        frames = sum(len(share.frames) for share in own)
        results = []
        with self._ranks.working():
            for share, part in zip(own, parts, strict=True):
                with self.work.call(work * len(share.frames) // frames):
                    results.append(self._result(task, share, part, num_frames, limit))
        return results

    def _result(
        self, task: engine.Task, share: Share, part: Tensor, num_frames: int, limit: int | None
    ) -> Tensor:
        if task == "encode":
            vae = self._encoder
            x = to_tensor(part.numpy()).to(vae.device, vae.dtype)
            moments: Tensor = vae.encode(x, memory_limit=limit).latent_dist.parameters
            return moments.cpu()
        latents = part.to(self._vae.device)
        frames = decode_share(self._vae, latents, share, num_frames, self._ranks, limit)
        return torch.from_numpy(crop_to(to_frames(frames), *self._shown).copy())

    def _spread(self, task: engine.Task, count: int, num_frames: int) -> list[list[Share]]:
        return spread(task, self._vae.network, count, num_frames, self._ranks.count)


def begin(vae: Autoencoder, ranks: Ranks, memory_limit: MemoryLimit) -> None:
    """See that all ranks have the same model and the same limit.

    Raises:
        InputError: they have not.
    """
    agree_on_model(ranks, vae, {"memory_limit": memory_limit})


def follow(vae: Autoencoder, ranks: Ranks, memory_limit: MemoryLimit) -> None:
    """Do what the leader says, until it says that this is the end."""
    while (header := _told(ranks)) != _END:
        ShardedCoder(vae, *header["size"], ranks=ranks, memory_limit=memory_limit).follow(header)


def finish(ranks: Ranks) -> None:
    """Say that this is the end."""
    _tell(ranks, _END)


def _tell(ranks: Ranks, header: dict[str, Any]) -> None:
    """Say to all ranks what comes next."""
    text = torch.frombuffer(bytearray(json.dumps(header).encode().ljust(_HEADER)), dtype=torch.uint8)
    ranks.exchange([(rank, text) for rank in range(ranks.count) if rank != LEADER], [])()


def _told(ranks: Ranks) -> dict[str, Any]:
    """What the leader says comes next, whenever it does: it may be reading or writing for long."""
    text = torch.empty(_HEADER, dtype=torch.uint8)
    ranks.exchange([], [(LEADER, text)], patient=True)()
    header: dict[str, Any] = json.loads(text.numpy().tobytes())
    return header
