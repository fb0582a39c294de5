"""`decode-dataset`: a video of each clip of a dataset of latents, or of each latent file of a folder.

A video that is there under its name is done: it appears there when it is complete and on the disk. Its name is the
identity of its latents, in a folder of the settings and the model. So a run that ended in whatever way goes on where
it stopped, and what other settings made is neither taken for done nor touched.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from temporal_vae.amounts import MemoryLimit, parse_memory
from temporal_vae.autoencoders.loading import load_named
from temporal_vae.distributed.dataset.decodable import Latents, latents_of
from temporal_vae.distributed.dataset.decoder import (
    DecodeJob,
    Decoder,
    DecodeSettings,
    DecodeTask,
    Outcome,
)
from temporal_vae.distributed.dataset.executors import MOST_DEATHS, ModelSpec
from temporal_vae.distributed.dataset.executors.local import default_workers, device_of, share_of
from temporal_vae.distributed.dataset.executors.processes import Died, in_processes
from temporal_vae.distributed.dataset.identity import model_digest
from temporal_vae.distributed.dataset.index import INDEX, index_name
from temporal_vae.distributed.dataset.places import Place, open_place
from temporal_vae.distributed.dataset.planning import Kind
from temporal_vae.distributed.dataset.request import Progress, Watch
from temporal_vae.distributed.dataset.shards.parquet import need_pyarrow
from temporal_vae.distributed.dataset.summary import DATASET, LEFT_OUT, QUARANTINE, SUMMARY
from temporal_vae.engine.resources import best_device
from temporal_vae.errors import InputError, LatentFileError
from temporal_vae.video.latents import ModelIdentity


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
        found: done before this run.
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
        return asdict(self) | {"complete": not self.left_out, "exit_code": self.exit_code}


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
    workers: int | None = None,
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
        workers: processes; None is one for each GPU, or each two cores. 0 decodes in this process.
        fail_fast: latents that can't be decoded end the run. Else they are listed in `quarantine.jsonl`.
        retry_quarantined: try those again that could not be decoded in an earlier run.
        progress: told how far the run is, from the thread that calls this.

    Raises:
        InputError: an argument out of range; a destination that holds other things.
        LatentFileError: no latents, those of another model, or, with `fail_fast`, such as can't be decoded.
        MediaError: a video that can't be written. What is done stays; go on when the disk has room.
        MemoryLimitError: a clip that can't be decoded within the limit.
    """
    began = monotonic()
    chosen = DecodeSettings(dtype=dtype, codec=codec, crf=crf, sample=sample, clip_frames=clip_frames)
    from_place, to_place = open_place(source), open_place(dest)
    _check(from_place, to_place)
    device = best_device() if device == "auto" else device
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
    workers = default_workers(device) if workers is None else workers
    run = _Run(job, to_place, listing, fail_fast=fail_fast, watch=progress or (lambda progress: None))
    run.decode(workers, retry=retry_quarantined)
    summary = run.summary(str(source), str(dest), monotonic() - began)
    to_place.write(SUMMARY, json.dumps(summary.to_json(), indent=1).encode())
    return summary


class _Run:
    """One run: what is missing is decoded, then the index is written."""

    def __init__(
        self,
        job: DecodeJob,
        dest: Place,
        listing: Latents,
        *,
        fail_fast: bool,
        watch: Watch,
    ) -> None:
        self._job, self._dest, self._listing = job, dest, listing
        self._fail_fast, self._watch, self._began = fail_fast, watch, monotonic()
        self._decoded = self._frames = self._failed = 0
        self._seconds = 0.0
        self._left_out: dict[str, tuple[Kind, str]] = {}
        self._others: list[dict[str, Any]] = []
        self._found: set[str] = set()

    def decode(self, workers: int, *, retry: bool) -> None:
        """Decode what is neither there nor known to be broken."""
        job, dest = self._job, self._dest
        dest.clean(job.folder)
        there = set(dest.list(job.folder))
        tasks = self._listing.tasks
        self._found = {each for each in tasks if job.video_of(each) in there}
        self._read_quarantine(retry=retry)
        for path, reason in self._listing.broken.items():
            self._fail(path, reason, "unreadable")
        todo = [each for key, each in tasks.items() if key not in self._found and key not in self._left_out]
        try:
            with closing(_outcomes(job, todo, min(workers, len(todo)) if workers else 0)) as outcomes:
                self._tell(len(todo))
                for outcome in outcomes:
                    self._enter(outcome)
                    self._tell(len(todo))
        finally:
            dest.clean(job.folder)
            self._write_quarantine()
        self._write_indices()

    def _enter(self, outcome: Outcome) -> None:
        if outcome.reason is not None:
            self._failed += 1
            self._fail(outcome.identity, outcome.reason, outcome.kind)
        else:
            self._decoded += 1
            self._frames += outcome.frames
            self._seconds += outcome.seconds
            self._found.add(outcome.identity)

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

    def _fail(self, key: str, reason: str, kind: Kind) -> None:
        self._left_out[key] = kind, reason
        if self._fail_fast:
            raise LatentFileError(reason)

    def summary(self, source: str, dest: str, seconds: float) -> DecodeSummary:
        """How the run went."""
        return DecodeSummary(
            source=source,
            dest=dest,
            folder=self._job.folder,
            settings=self._job.digest,
            rows=len(self._listing.table) + len(self._listing.broken),
            clips=len(self._listing.tasks) + len(self._listing.broken),
            decoded=self._decoded,
            found=len(self._found) - self._decoded,
            left_out=len(self._left_out),
            frames=self._frames,
            video_seconds=round(self._seconds, 3),
            seconds=round(seconds, 3),
        )

    def _read_quarantine(self, *, retry: bool) -> None:
        """Latents that could not be decoded with these settings before, and lines of others, which are kept."""
        if not self._dest.exists(QUARANTINE):
            return
        for line in self._dest.read(QUARANTINE).decode().splitlines():
            try:
                entry = json.loads(line)
                ours = entry["settings"] == self._job.digest
                if not ours:
                    self._others.append(entry)
                elif entry["kind"] == "failed" and entry["identity"] in self._listing.tasks and not retry:
                    self._left_out[entry["identity"]] = "failed", entry["reason"]
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that says nothing: what it was about is tried again

    def _write_quarantine(self) -> None:
        entries = list(self._others)
        for key, (kind, reason) in self._left_out.items():
            task = self._listing.tasks.get(key)
            what = {"path": key} if task is None else {"identity": key, "path": task.path}
            entries.append({"settings": self._job.digest, "kind": kind, **what, "reason": reason})
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        self._dest.write(QUARANTINE, "".join(lines).encode("utf-8", "backslashreplace"))

    def _write_indices(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        identities = self._listing.table["identity"].to_pylist()
        table = self._listing.table.filter(pa.array([each in self._found for each in identities], pa.bool_()))
        files = [self._job.video_of(each) for each in identities if each in self._found]
        table = table.add_column(0, "file", pa.array(files, pa.string()))
        table = table.append_column("settings", pa.array([self._job.digest] * len(files), pa.string()))
        for name in (index_name(self._job.digest), index_name()):
            with self._dest.writing(name) as file:
                pq.write_table(table, file)


def _outcomes(job: DecodeJob, tasks: list[DecodeTask], workers: int) -> Generator[Outcome, None, None]:
    """Decode in processes of this machine, one that dies being replaced; or in this process."""
    if not tasks:
        return
    if not workers:
        yield from map(Decoder(job), tasks)
        return
    threads, memory = share_of(job.model.device, workers)
    job = replace(job, threads=threads, memory_limit=memory if job.memory_limit is None else job.memory_limit)
    again: deque[DecodeTask] = deque()
    deaths: Counter[str] = Counter()
    with closing(in_processes(partial(_decoder, job), tasks, workers, again)) as results:
        for result in results:
            if not isinstance(result, Died):
                yield result.result
                continue
            task = result.task
            deaths[task.identity] += 1
            if deaths[task.identity] < MOST_DEATHS:
                again.append(task)
            else:
                reason = f"{task.path}: a worker died {MOST_DEATHS} times while it decoded these latents"
                yield Outcome(identity=task.identity, reason=reason)


def _decoder(job: DecodeJob, number: int) -> Decoder:
    """What a process of this number does."""
    return Decoder(replace(job, model=replace(job.model, device=device_of(job.model.device, number))))


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
