"""The core of `encode-dataset`: plan, give out what is missing, enter what comes back, leave an index.

It knows no engine: whoever encodes gets batches and gives reports. What is done is known by identity, so that a run
that ended in whatever way goes on where it stopped, and what was asked for before is neither done again nor lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic, sleep

from typing_extensions import Unpack

from temporal_vae.amounts import parse_memory
from temporal_vae.autoencoders.loading import load_named
from temporal_vae.distributed.dataset.adoption import clean, reconcile
from temporal_vae.distributed.dataset.clips import check
from temporal_vae.distributed.dataset.encode_job import Batch, ClipTask, EncodeJob, Failure
from temporal_vae.distributed.dataset.executors import ModelSpec
from temporal_vae.distributed.dataset.executors.local import LocalExecutor, default_workers
from temporal_vae.distributed.dataset.identity import home_of, model_digest
from temporal_vae.distributed.dataset.ledger import Ledger, Where, fetch, ledger_path, publish
from temporal_vae.distributed.dataset.locks import only_driver
from temporal_vae.distributed.dataset.pace import Pace
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.planning import DatasetPlan, LeftOut, ModelFacts, plan_of
from temporal_vae.distributed.dataset.request import How, Progress, Request, Tally, Watch, kept_so_far
from temporal_vae.distributed.dataset.settings import Settings
from temporal_vae.distributed.dataset.shards.parquet import need_pyarrow
from temporal_vae.distributed.dataset.sources import Listing, rows_of
from temporal_vae.distributed.dataset.summary import (
    Summary,
    count,
    write_indices,
    write_quarantine,
    write_settings,
    write_summary,
)
from temporal_vae.distributed.dataset.survey import survey
from temporal_vae.engine import cores
from temporal_vae.errors import MediaError, TemporalVaeError
from temporal_vae.video.latents import ModelIdentity

_HELD_BYTES = 2**28  # of the clips of a batch, which a worker holds until it writes them
_LOOKING_EVERY = 0.5  # seconds: whether other ranks are done


def encode_dataset(
    source: str | Path,
    dest: str | Path,
    *,
    settings: Settings | None = None,
    progress: Watch | None = None,
    **how: Unpack[How],
) -> Summary:
    """Encode a dataset of videos into one of latents, or what is missing of it.

    A run that ended in whatever way goes on where it stopped: call it again. What other settings made in the folder
    stays. By default clips are encoded in processes of this machine, so a script that calls this needs
    `if __name__ == "__main__":` around what it does.

    Args:
        source: a folder of videos, a pattern, or a manifest (CSV, JSONL, Parquet) with `path`, perhaps `start` and
            `end` in seconds, and any further columns, which are carried along.
        dest: folder of the dataset, a path or a URL that fsspec opens.
        settings: how videos are cut and encoded.
        progress: told how far it is, from the thread that calls this.
        **how: see `How`.

    Returns:
        How it went. What was left out, and why, is counted there and listed in `quarantine.jsonl`.

    Raises:
        InputError: another run writes there, or settings that do not go with the model.
        CheckpointError: a model that cannot be loaded.
        MediaError: a source that is not there, or a folder that can't be written.
        TemporalVaeError: what ended it half-way. What is done is kept.
    """
    request = Request(source=source, dest=dest, settings=settings or Settings(), **how)
    with Run(request, progress or (lambda progress: None)) as run:
        return run.encode()


class Run:
    """One run over a dataset, which nobody else writes to meanwhile. A context manager.

    Args:
        request: what is to be done.
        watch: told how far it is.

    Attributes:
        plan: what there is to encode.
        missing: clips of it that this run is to encode.

    Raises:
        InputError: another run writes there, or settings that do not go with the model.
        CheckpointError: a model that cannot be loaded.
        MediaError: a source that is not there, or a folder that can't be written.
    """

    def __init__(self, request: Request, watch: Watch = lambda progress: None) -> None:
        self._request, self._watch, self._began = request, watch, monotonic()
        self._executor = request.executor or LocalExecutor(workers=default_workers(request.device))
        self._share = self._executor.share
        need_pyarrow("encode-dataset")
        self._place = open_place(request.dest)
        listing = rows_of(request.source, without=self._place.local)
        self._path = path = request.ledger or ledger_path(self._place, self._share)
        with ExitStack() as held:
            held.enter_context(only_driver(path.parent, self._share, str(request.dest)))
            clean(self._place, request.format)  # first of all: it may be all the room there is
            held.callback(clean, self._place, request.format)  # what workers that died were writing
            fetch(self._place, path)
            self._ledger = held.enter_context(Ledger(path))
            self._ledger.forget_failures(lasting=request.retry_quarantined)
            if self._share.ranks > 1:
                publish(self._place, path)
            self._executor.meet()  # or one might take for over what another has just forgotten
            self._identity, facts = self._load_model()
            check(request.settings, facts.factor)
            self.plan = self._plan(listing, facts)
            self._reconcile()
            self.missing = self._missing()
            self._held = held.pop_all()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def encode(self) -> Summary:
        """Encode what is missing.

        Raises:
            TemporalVaeError: what ended it: a full disk, a memory limit, or with `fail_fast` a clip. What is done is
                kept; the next run goes on from there.
        """
        write_settings(self._place, self.plan, self._request.format, self._identity)
        write_quarantine(self._place, self._left_out())
        tally = Tally(self._watch, {task.identity: task for task in self.missing})
        first: Failure | None = None
        if self.missing:
            pace = Pace(self._executor.at_once(), self._request.clips_per_shard)
            with kept_so_far(), closing(self._executor.run(self._job(), self._batches(pace))) as reports:
                for report in reports:
                    self._ledger.commit(report.shard, report.failed)
                    done = report.shard.places if report.shard else ()
                    pace.done(len(done) or len(report.failed))
                    tally.add(done, [failure.identity for failure in report.failed])
                    if report.failed and self._request.fail_fast:
                        first = report.failed[0]
                        break
            if first is not None:
                raise MediaError(first.reason)
            self._reconcile()
        return self._finish(tally.now)

    def _load_model(self) -> tuple[ModelIdentity, ModelFacts]:
        """Who the model is; workers load their own."""
        request = self._request
        vae = load_named(request.model, request.subfolder, dtype=request.settings.dtype)
        identity = ModelIdentity.of(vae)
        facts = ModelFacts(
            digest=model_digest(identity),
            factor=vae.spatial_factor,
            channels=vae.config["latent_channels"],
        )
        return identity, facts

    def _plan(self, listing: Listing, model: ModelFacts) -> DatasetPlan:
        request, began = self._request, monotonic()

        def told(done: int, total: int) -> None:
            self._watch(Progress(phase="probe", done=done, total=total, seconds=monotonic() - began))

        found = survey(
            [row.path for row in listing.rows],
            request.settings.reading,
            self._ledger,
            workers=cores(),
            share=self._share,
            fail_fast=request.fail_fast,
            told=told,
        )
        return plan_of(listing, found, request.settings, model)

    def _reconcile(self) -> None:
        reconcile(self._place, self._ledger, self._request.format, self._share)

    def _missing(self) -> list[ClipTask]:
        """Clips of the plan that are neither done nor known to fail, and fall to this rank."""
        over = set(self._ledger.committed(self._request.format))
        if not self._request.retry_quarantined:
            over |= set(self._ledger.failures())
        length = self.plan.settings.clip_frames
        return [
            task
            for identity, task in self.plan.clips.items()
            if identity not in over
            and (
                self._share.ranks == 1
                or home_of(task.source_sha256, task.start, length / task.rate, self._share.ranks)
                == self._share.rank
            )
        ]

    def _batches(self, pace: Pace) -> Iterator[Batch]:
        """Clips in the order of the plan, so that those of a video are together."""
        first, tasks = 0, self.missing
        for number in itertools.count():
            if first == len(tasks):
                return
            clips = self._holdable(tasks[first : first + pace.next(len(tasks) - first)])
            yield Batch(number=number, clips=clips)
            first += len(clips)

    def _holdable(self, tasks: list[ClipTask]) -> tuple[ClipTask, ...]:
        """As many of the first clips as a worker may hold, one at least."""
        sizes = itertools.accumulate(map(self.plan.nbytes_of, tasks))
        return tuple(tasks[: max(1, sum(size <= _HELD_BYTES for size in sizes))])

    def _job(self) -> EncodeJob:
        request = self._request
        is_folder = Path(request.model).exists()
        return EncodeJob(
            model=ModelSpec(
                name=str(Path(request.model).resolve()) if is_folder else request.model,
                subfolder=request.subfolder,
                device=request.device,
                identity=self.plan.model.digest,
            ),
            settings=request.settings,
            dest=self._place.url if self._place.local is None else str(self._place.local.resolve()),
            format=request.format,
            memory_limit=None if request.memory_limit is None else parse_memory(request.memory_limit),
        )

    def _outcome(self) -> tuple[dict[str, Where], list[LeftOut], int]:
        """Clips that are done, what is left out, and how many clips are neither."""
        fetch(self._place, self._path)
        committed, left_out = self._ledger.committed(self._request.format), self._left_out()
        over = committed.keys() | {each.identity for each in left_out}
        return committed, left_out, sum(identity not in over for identity in self.plan.clips)

    def _left_out(self) -> list[LeftOut]:
        """Rows without clips, and clips that failed and are not done."""
        plan, done = self.plan, self._ledger.committed(self._request.format)
        failures = self._ledger.failures()
        clips = [
            LeftOut(kind="failed", source=task.source, path=task.path, reason=failures[identity], identity=identity)
            for identity, task in plan.clips.items()
            if identity in failures and identity not in done
        ]  # fmt: skip
        return plan.left_out + clips

    def _finish(self, now: Progress) -> Summary:
        """Write what is beside the shards, if there is nothing left to be encoded by others."""
        request, plan, place = self._request, self.plan, self._place
        publish(place, self._path)
        committed, left_out, waiting = self._outcome()
        if waiting and self._share.ranks == 1:
            raise TemporalVaeError(
                f"{waiting} clips came back neither done nor failed; run again, and report it"
            )
        while waiting and self._executor.together:
            sleep(_LOOKING_EVERY)
            committed, left_out, waiting = self._outcome()
        there = len(plan.clips) - waiting - count(left_out)["failed"]
        encoded = now.done - now.failed
        summary = Summary(
            source=str(request.source),
            dest=str(request.dest),
            settings=plan.digest,
            format=request.format,
            rows=plan.rows,
            videos=plan.videos,
            clips=len(plan.clips),
            duplicates=plan.duplicates,
            encoded=encoded,
            found=there - encoded,
            waiting=waiting,
            left_out=count(left_out),
            passed_over=plan.passed_over,
            tail_frames=plan.tail_frames,
            remarks=[remark for each in plan.remarks.values() for remark in each],
            video_seconds=float(plan.seconds),
            nbytes=self._ledger.nbytes(request.format),
            seconds=monotonic() - self._began,
            clips_per_second=encoded / now.seconds if encoded else 0.0,
            video_seconds_per_second=now.video_seconds / now.seconds if encoded else 0.0,
        )
        if not waiting:
            write_indices(place, plan, request.format, committed)
            write_quarantine(place, left_out)
            write_summary(place, summary)
        return summary
