"""What a run leaves beside its shards: the index, what was left out and why, the settings, and how it went."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from temporal_vae.distributed.dataset.encode_job import ClipTask
from temporal_vae.distributed.dataset.index import COLUMNS, write_index
from temporal_vae.distributed.dataset.ledger import Where
from temporal_vae.distributed.dataset.places import Place
from temporal_vae.distributed.dataset.planning import KINDS, DatasetPlan, LeftOut
from temporal_vae.distributed.dataset.settings import FORMAT_VERSION
from temporal_vae.distributed.dataset.shards import Format
from temporal_vae.errors import LatentFileError
from temporal_vae.video.latents import ModelIdentity

DATASET, QUARANTINE, SUMMARY = "dataset.json", "quarantine.jsonl", "summary.json"
LEFT_OUT = 3
"""What the command exits with where all that could be done is done, and something was left out."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run went.

    Attributes:
        source, dest: as they were given.
        settings: hash of the settings and the model.
        format: of the shards.
        rows, videos: of the source: rows, and files that were probed.
        clips: of the plan, each counted once.
        duplicates: clips that are listed once more.
        encoded: in this run.
        found: done before this run, or by others meanwhile.
        waiting: that other ranks are yet to encode.
        left_out: how many of each kind of `planning.KINDS`: rows, and of `failed` clips.
        passed_over: files of a folder that are no videos by their names.
        tail_frames: frames behind the last whole clips, which are in none.
        remarks: what readers had to say, such as how many frames of a damaged file that was kept are lost.
        video_seconds: of all clips of the plan.
        nbytes: of all shards in the folder.
        seconds: that the run took, planning included.
        clips_per_second, video_seconds_per_second: of what this run encoded, in the time that took.
    """

    source: str
    dest: str
    settings: str
    format: Format
    rows: int
    videos: int
    clips: int
    duplicates: int
    encoded: int
    found: int
    waiting: int
    left_out: dict[str, int]
    passed_over: int
    tail_frames: int
    remarks: list[str]
    video_seconds: float
    nbytes: int
    seconds: float
    clips_per_second: float
    video_seconds_per_second: float

    @property
    def complete(self) -> bool:
        """Whether all that is listed is there."""
        return not self.waiting and not any(self.left_out.values())

    @property
    def exit_code(self) -> int:
        """0, or `LEFT_OUT` where something was left out."""
        return LEFT_OUT if any(self.left_out.values()) else 0

    def to_json(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self) | {"complete": self.complete, "exit_code": self.exit_code}


def count(left_out: Sequence[LeftOut]) -> dict[str, int]:
    """How many there are of each kind, those of which there are none included."""
    kinds = Counter(each.kind for each in left_out)
    return {kind: kinds[kind] for kind in KINDS}


def write_settings(place: Place, plan: DatasetPlan, format: Format, model: ModelIdentity) -> None:
    """Add the settings and the model of a plan to those that the folder was used with.

    Raises:
        LatentFileError: the file that holds them is damaged, or of a later release.
    """
    known: dict[str, Any] = {"format_version": FORMAT_VERSION, "settings": {}}
    if place.exists(DATASET):
        try:
            known = json.loads(place.read(DATASET))
            if known["format_version"] != FORMAT_VERSION:
                raise LatentFileError(
                    f"{place.shown(DATASET)}: is of format version {known['format_version']}; "
                    f"this release writes version {FORMAT_VERSION}: name another folder"
                )
            dict(known["settings"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, LatentFileError):
                raise
            raise LatentFileError(f"{place.shown(DATASET)}: is damaged; remove it and run again") from error
    entry = {
        "settings": plan.settings.to_json(),
        "format": format,
        "model": {
            "name": model.name,
            "config": model.config,
            "config_sha256": model.config_sha256,
            "encoder_probe": model.encoder_probe,
        },
    }
    settings = {**known["settings"], plan.digest: entry}
    updated = {"format_version": FORMAT_VERSION, "present": plan.digest, "settings": settings}
    if updated != known:
        place.write(DATASET, json.dumps(updated, indent=1).encode())


def write_quarantine(place: Place, left_out: Sequence[LeftOut]) -> None:
    """Write what is left out, a line of JSON each; an empty file where nothing is."""
    lines = (json.dumps(_plain(asdict(each)), ensure_ascii=False) + "\n" for each in left_out)
    place.write(QUARANTINE, "".join(lines).encode())


def write_summary(place: Place, summary: Summary) -> None:
    """Write how the run went."""
    place.write(SUMMARY, json.dumps(summary.to_json(), indent=1).encode())


def write_indices(place: Place, plan: DatasetPlan, format: Format, committed: Mapping[str, Where]) -> None:
    """Write the index of a plan: a row for each row of the source and each of its clips that is there."""
    fixed: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    names = dict.fromkeys(name for listed in plan.listed for name in listed.row.columns)
    more: dict[str, list[Any]] = {name: [] for name in names}
    for listed in plan.listed:
        for identity in listed.clips:
            if identity in committed:
                task = plan.clips[identity]
                values = _index_row(task, plan, committed[identity])
                values |= {"path": listed.row.source, "format": format}
                for name, column in fixed.items():
                    column.append(values[name])
                for name, column in more.items():
                    column.append(listed.row.columns.get(name))
    renamed = {f"manifest_{name}" if name in COLUMNS else name: column for name, column in more.items()}
    for settings in (plan.digest, None):
        write_index(place, settings, fixed, renamed)


def _index_row(task: ClipTask, plan: DatasetPlan, where: Where) -> dict[str, Any]:
    width, height = task.size
    shape = task.frames, plan.model.channels, *(ceil(side / plan.model.factor) for side in (height, width))
    return {
        "identity": task.identity,
        "shard": where.shard,
        "offset": where.at[0],
        "length": where.at[1],
        "start": float(task.start),
        "end": float(task.end),
        "frames": task.frames,
        "width": task.original[0],
        "height": task.original[1],
        "shape": "x".join(map(str, shape)),
        "bucket": f"{width}x{height}",
        "fps": str(Fraction(task.rate)),
        "settings": plan.digest,
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is None, and with paths as valid Unicode."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode()
        for name, value in values.items()
        if value is not None
    }
