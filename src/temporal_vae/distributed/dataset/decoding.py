"""The core of `decode-dataset`: a video of each clip of a dataset of latents, or of each latent file of a folder.

A video that is there under its name is done: it appears there when it is complete and on the disk. Its name is the
identity of its latents, in a folder of the settings and the model. So a run that ended in whatever way goes on where
it stopped, and what other settings made is neither taken for done nor touched.
"""

from __future__ import annotations

import json
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from temporal_vae.amounts import MemoryLimit, parse_memory
from temporal_vae.autoencoders.loading import load_named
from temporal_vae.distributed.dataset.decodable import Latents, latents_of
from temporal_vae.distributed.dataset.decode_job import DecodeJob, DecodeSettings, DecodeTask
from temporal_vae.distributed.dataset.executors import Executor, ModelSpec
from temporal_vae.distributed.dataset.executors.local import LocalExecutor, default_workers
from temporal_vae.distributed.dataset.identity import model_digest
from temporal_vae.distributed.dataset.index import INDEX, index_name
from temporal_vae.distributed.dataset.ledger import ledger_path
from temporal_vae.distributed.dataset.locks import only_driver
from temporal_vae.distributed.dataset.places import Place, open_place
from temporal_vae.distributed.dataset.request import Progress, Watch, kept_so_far
from temporal_vae.distributed.dataset.shards.parquet import need_pyarrow
from temporal_vae.distributed.dataset.summary import DATASET, LEFT_OUT, SUMMARY
from temporal_vae.distributed.dataset.videos import Note, Videos, write_quarantine
from temporal_vae.errors import InputError, LatentFileError, MediaError, TemporalVaeError
from temporal_vae.video.latents import ModelIdentity

_LOOKING_EVERY = 0.5  # seconds, or ten times as long as it takes: whether other ranks are done


@dataclass(frozen=True, kw_only=True)
class DecodeSummary:
    """How a run went.

    Attributes:
        source, dest: as they were given.
        folder: of the videos, in `dest`.
        settings: hash of the settings and the model.
        rows: of the index of the source, or latent files.
        clips: videos to make, each counted once.
        decoded: in this run.
        found: done before this run, or by others meanwhile.
        waiting: that other ranks are yet to decode.
        left_out: latents that could not be decoded, in this run or an earlier one; their reasons are in
            `quarantine.jsonl`.
        frames: that were decoded in this run.
        video_seconds: alike.
        seconds: that the run took.
    """

    source: str
    dest: str
    folder: str
    settings: str
    rows: int
    clips: int
    decoded: int
    found: int
    waiting: int
    left_out: int
    frames: int
    video_seconds: float
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, or `summary.LEFT_OUT` where something was left out."""
        return LEFT_OUT if self.left_out else 0

    def to_json(self) -> dict[str, Any]:
        """All fields, for JSON."""
        complete = not self.left_out and not self.waiting
        return asdict(self) | {"complete": complete, "exit_code": self.exit_code}


def decode_dataset(
    source: str | Path,
    dest: str | Path,
    *,
    model: str = "embedded",
    subfolder: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    settings: str | None = None,
    codec: str = "h264",
    crf: int = 18,
    sample: int | None = None,
    clip_frames: int | None = 25,
    memory_limit: MemoryLimit = None,
    executor: Executor | None = None,
    fail_fast: bool = False,
    retry_quarantined: bool = False,
    progress: Watch | None = None,
) -> DecodeSummary:
    """Make a video of each clip of a dataset of latents, or of each latent file of a folder.

    Videos are called `videos/<settings>/<identity>.mp4`; `index.parquet` says which is of what. Call it again to go on
    with a run that was interrupted, or with what is new.

    Args:
        source: what `encode_dataset` wrote to its end, or a folder of files that `encode_video` wrote; a path or URL.
        dest: the folder to write to, a path or URL.
        model: that encoded: a folder, a hub id, a safetensors file, or `embedded`.
        subfolder: of the model.
        dtype: to compute in.
        device: as torch names it; `auto` takes GPUs where there are any.
        settings: of several that the dataset was encoded with, by the first 8 digits or more of their hash; None is
            those of the last run.
        codec: `h264` (.mp4), `ffv1` (.mkv, lossless) or `gif`.
        crf: quality of H.264, 0 (best) to 51.
        sample: decode a sample of the posterior, drawn by this seed, rather than its mean.
        clip_frames: frames of a latent file that are decoded as one clip; None for all. It changes the pixels. A clip
            of a dataset is one clip.
        memory_limit: bytes that the model may take above its weights, in each worker; the same pixels.
        executor: who decodes; None is processes of this machine, one for each GPU, or each two cores.
        fail_fast: latents that can't be decoded end the run. Else they are listed in `quarantine.jsonl`.
        retry_quarantined: try those again that could not be decoded in an earlier run.
        progress: told how far the run is, from the thread that calls this.

    Raises:
        InputError: an argument out of range; a destination that holds other things, or that another run writes to.
        LatentFileError: no latents, those of another model, or, with `fail_fast`, such as can't be decoded.
        MediaError: a video that can't be written. What is done stays; go on when the disk has room.
        MemoryLimitError: out of memory.
    """
    began = monotonic()
    chosen = DecodeSettings(dtype=dtype, codec=codec, crf=crf, sample=sample, clip_frames=clip_frames)
    from_place, to_place = open_place(source), open_place(dest)
    _check(from_place, to_place)
    if from_place.exists(INDEX):
        chosen = replace(chosen, clip_frames=None)  # a clip is one, whatever is said
    limit = None if memory_limit is None else parse_memory(memory_limit)
    vae = load_named(model, subfolder, dtype=dtype)
    listing = latents_of(from_place, settings, vae)
    identity, digest = model_digest(ModelIdentity.of(vae)), chosen.digest(vae)
    del vae
    name = str(Path(model).resolve()) if Path(model).exists() else model
    job = DecodeJob(
        model=ModelSpec(name=name, subfolder=subfolder, device=device, identity=identity),
        settings=chosen,
        digest=digest,
        source=_absolute(from_place),
        dest=_absolute(to_place),
        folder=f"videos/{digest[:8]}",
        memory_limit=limit,
    )
    executor = executor or LocalExecutor(workers=default_workers(device))
    beside = ledger_path(to_place, executor.share).parent
    with only_driver(beside, executor.share, str(dest)):
        run = _Run(
            job, to_place, listing, executor, fail_fast=fail_fast, watch=progress or (lambda now: None)
        )
        run.decode(retry=retry_quarantined)
        return run.finish(str(source), str(dest), began)


class _Run:
    """One run: what is missing is decoded, then the index is written."""

    def __init__(
        self,
        job: DecodeJob,
        dest: Place,
        listing: Latents,
        executor: Executor,
        *,
        fail_fast: bool,
        watch: Watch,
    ) -> None:
        self._job, self._dest, self._listing, self._executor = job, dest, listing, executor
        self._videos = Videos(dest, job)
        self._fail_fast, self._watch, self._began = fail_fast, watch, monotonic()
        self._decoded = self._frames = self._failed = 0
        self._seconds = 0.0

    def decode(self, *, retry: bool) -> None:
        """Decode what falls to this rank and is neither there nor known to be broken."""
        if self._fail_fast and self._listing.broken:
            raise LatentFileError(next(iter(self._listing.broken.values())))
        self._videos.clean()
        todo = self._todo(retry=retry)
        self._executor.meet()  # or one might take for over what another has just forgotten
        self._tell(len(todo))
        try:
            self._do(todo)
        finally:
            with suppress(MediaError):  # the disk may be full; where all went well it is written at the end
                self._videos.clean()  # of workers that died
                write_quarantine(self._dest, self._job, self._look()[1], self._listing.broken)

    def _todo(self, *, retry: bool) -> dict[str, DecodeTask]:
        share = self._executor.share
        done, notes = self._videos.look()
        ours = {each: task for each, task in self._listing.tasks.items() if share.is_ours(each)}
        again = {each for each in ours if each in notes and (retry or notes[each].passing)}
        self._videos.forget(again)
        over = done | (set(notes) - again)
        return {each: task for each, task in ours.items() if each not in over}

    def _do(self, todo: dict[str, DecodeTask]) -> None:
        if not todo:
            return
        with kept_so_far(), closing(self._executor.run(self._job, todo.values())) as outcomes:
            for outcome in outcomes:
                if outcome.reason is None:
                    self._decoded += 1
                    self._frames += outcome.frames
                    self._seconds += outcome.seconds
                else:
                    self._failed += 1
                    self._videos.note(todo[outcome.identity], outcome)
                self._tell(len(todo))
                if outcome.reason is not None and self._fail_fast:
                    raise LatentFileError(outcome.reason)

    def _tell(self, total: int) -> None:
        now = Progress(
            phase="decode",
            done=self._decoded + self._failed,
            total=total,
            failed=self._failed,
            video_seconds=self._seconds,
            seconds=monotonic() - self._began,
        )
        self._watch(now)

    def _look(self) -> tuple[set[str], dict[str, Note], int]:
        """What is done, what can't be, and how many are neither."""
        tasks = self._listing.tasks
        done, notes = self._videos.look()
        done, notes = done & tasks.keys(), {each: note for each, note in notes.items() if each in tasks}
        return done, notes, len(tasks) - len(done) - len(notes)

    def finish(self, source: str, dest: str, began: float) -> DecodeSummary:
        """Write what is beside the videos, if there is nothing left to be decoded by others."""
        job, listing = self._job, self._listing
        looked = monotonic()
        done, notes, waiting = self._look()
        pause = max(_LOOKING_EVERY, 10 * (monotonic() - looked))
        if waiting and self._executor.share.ranks == 1:
            raise TemporalVaeError(f"{waiting} videos are neither there nor failed; run again, and report it")
        while waiting and self._executor.together:
            sleep(pause)
            done, notes, waiting = self._look()
        summary = DecodeSummary(
            source=source,
            dest=dest,
            folder=job.folder,
            settings=job.digest,
            rows=len(listing.table) + len(listing.broken),
            clips=len(listing.tasks) + len(listing.broken),
            decoded=self._decoded,
            found=len(done) - self._decoded,
            waiting=waiting,
            left_out=len(notes) + len(listing.broken),
            frames=self._frames,
            video_seconds=round(self._seconds, 3),
            seconds=round(monotonic() - began, 3),
        )
        if not waiting:
            write_quarantine(self._dest, job, notes, listing.broken)
            self._write_indices(done)
            self._dest.write(SUMMARY, json.dumps(summary.to_json(), indent=1).encode())
        return summary

    def _write_indices(self, done: set[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        identities = self._listing.table["identity"].to_pylist()
        table = self._listing.table.filter(pa.array([each in done for each in identities], pa.bool_()))
        files = [self._job.video_of(each) for each in identities if each in done]
        table = table.add_column(0, "file", pa.array(files, pa.string()))
        table = table.append_column("settings", pa.array([self._job.digest] * len(files), pa.string()))
        for name in (index_name(self._job.digest), index_name()):
            with self._dest.writing(name) as file:
                pq.write_table(table, file)


def _check(source: Place, dest: Place) -> None:
    """Refuse a destination that holds what would be replaced."""
    need_pyarrow("decode-dataset")
    if _absolute(source).rstrip("/") == _absolute(dest).rstrip("/"):
        raise InputError(f"{dest.url}: is the source itself; name another folder for the videos")
    if dest.exists(DATASET):
        raise InputError(f"{dest.url}: holds a dataset of latents; name another folder for the videos")
    if source.exists(DATASET) and not source.exists(INDEX):
        raise LatentFileError(
            f"{source.url}: is a dataset that is not finished; run encode-dataset to its end"
        )


def _absolute(place: Place) -> str:
    return place.url if place.local is None else str(place.local.resolve())
