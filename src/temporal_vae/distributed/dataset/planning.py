"""From rows to clips: what there is to encode, what is listed twice, and what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any, Literal

from temporal_vae.distributed.dataset import clips
from temporal_vae.distributed.dataset.encode_job import ClipTask
from temporal_vae.distributed.dataset.identity import identity_of, recipe_of, settings_digest
from temporal_vae.distributed.dataset.probing import Found, Probe
from temporal_vae.distributed.dataset.settings import Settings
from temporal_vae.distributed.dataset.sources import Listing, Row, plain
from temporal_vae.errors import NAMED

Kind = Literal["unreadable", "too short", "unfit", "failed"]
KINDS: tuple[Kind, ...] = ("unreadable", "too short", "unfit", "failed")
"""Why something is left out: a file that can't be read, too few frames, too small a picture, a clip that can't be
encoded."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What a plan needs to know of a model.

    Attributes:
        digest: see `identity.model_digest`.
        factor: pixels of a frame for each latent, along both sides.
        channels: of latents.
    """

    digest: str
    factor: int
    channels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A row and the identities of its clips."""

    row: Row
    clips: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A row, or a clip of it, that is not encoded.

    Attributes:
        kind: one of `KINDS`.
        source: the file as it is listed.
        path: the file.
        reason: in one line.
        identity: of the clip; None where all of the row is left out.
    """

    kind: Kind
    source: str
    path: str
    reason: str
    identity: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """What there is to encode. `str(plan)` is a table for people.

    Attributes:
        settings: it was made with.
        model: it was made for.
        digest: hash of both.
        clips: to encode, each once, by identity.
        listed: rows of which there are clips, in the order of the source.
        left_out: rows of which there are none.
        videos: how many files were probed.
        passed_over: files of a folder that are no videos by their names.
        tail_frames: frames behind the last whole clips, which are in none.
        remarks: what readers had to say, by file.
    """

    settings: Settings
    model: ModelFacts
    digest: str
    clips: dict[str, ClipTask] = field(default_factory=dict)
    listed: list[Listed] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    videos: int
    passed_over: int
    tail_frames: int
    remarks: dict[str, tuple[str, ...]]

    @property
    def rows(self) -> int:
        """Rows of the source."""
        return len(self.listed) + len(self.left_out)

    @property
    def duplicates(self) -> int:
        """Clips that are listed once more."""
        return sum(len(each.clips) for each in self.listed) - len(self.clips)

    @property
    def seconds(self) -> Fraction:
        """Seconds of video in all clips."""
        return sum((task.frames / task.rate for task in self.clips.values()), Fraction(0))

    @property
    def buckets(self) -> dict[tuple[int, int], int]:
        """How many clips there are of each `(width, height)`, the most frequent first."""
        return dict(Counter(task.size for task in self.clips.values()).most_common())

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of all clips."""
        return sum(map(self.nbytes_of, self.clips.values()))

    def nbytes_of(self, task: ClipTask) -> int:
        """Bytes of the tensors of a clip."""
        width, height = (ceil(side / self.model.factor) for side in task.size)
        each = _BYTES[self.settings.stored_dtype] * len(self.settings.tensors)
        return task.frames * self.model.channels * width * height * each

    def __str__(self) -> str:
        return "\n".join(f"{name:14}{value}" for name, value in self.lines())

    def lines(self) -> list[tuple[str, str]]:
        """Names and values, to be shown one below the other."""
        lines = [
            ("rows", f"{self.rows:,} of {self.videos:,} files"),
            ("clips", f"{len(self.clips):,} of up to {self.settings.clip_frames} frames"),
            ("video", f"{float(self.seconds):,.1f} s"),
            ("output", f"{self.nbytes / 2**20:,.1f} MiB"),
        ]
        sizes = list(self.buckets.items())
        lines += [("size", f"{width}x{height}: {count:,} clips") for (width, height), count in sizes[:8]]
        if len(sizes) > 8:
            rest = sum(count for _, count in sizes[8:])
            lines.append(("size", f"{len(sizes) - 8:,} others: {rest:,} clips"))
        if (largest := self._most_cut_off()) > 0:
            lines.append(("cut off", f"up to {float(largest):.0%} of a picture"))
        if self.duplicates:
            lines.append(("twice", f"{self.duplicates:,} clips are listed again; they are encoded once"))
        if self.tail_frames:
            lines.append(("behind", f"{self.tail_frames:,} frames after the last whole clips are in none"))
        if self.passed_over:
            lines.append(("passed over", f"{self.passed_over:,} files that are no videos by their names"))
        lines += [("remark", remark) for remarks in self.remarks.values() for remark in remarks][:NAMED]
        return lines + _shown(self.left_out)

    def to_json(self) -> dict[str, Any]:
        """The figures of the plan, for JSON."""
        return {
            "settings": self.settings.to_json(),
            "rows": self.rows,
            "videos": self.videos,
            "clips": len(self.clips),
            "duplicates": self.duplicates,
            "video_seconds": float(self.seconds),
            "nbytes": self.nbytes,
            "buckets": {f"{width}x{height}": count for (width, height), count in self.buckets.items()},
            "left_out": {kind: sum(each.kind == kind for each in self.left_out) for kind in KINDS},
            "reasons": [each.reason for each in self.left_out],
            "passed_over": self.passed_over,
            "tail_frames": self.tail_frames,
        }

    def _most_cut_off(self) -> Fraction:
        pictures = {(task.box, task.size, task.original) for task in self.clips.values()}
        shares = (clips.Picture(box=box, size=size).cut_off(*original) for box, size, original in pictures)
        return max(shares, default=Fraction(0))


def plan_of(
    listing: Listing, found: Mapping[str, Found], settings: Settings, model: ModelFacts
) -> DatasetPlan:
    """Cut what a source stands for into clips.

    Args:
        listing: the rows.
        found: what was found of each file, by path.
        settings: how to cut.
        model: to encode with.

    Raises:
        InputError: settings that do not go with the model.
    """
    clips.check(settings, model.factor)
    recipe = recipe_of(settings, model.digest)
    tasks: dict[str, ClipTask] = {}
    listed: list[Listed] = []
    left_out: list[LeftOut] = []
    tail_frames = 0
    for row in listing.rows:
        probe = found[row.path]
        if not isinstance(probe, Probe):
            left_out.append(_left_out("unreadable", row, probe.reason))
            continue
        cut = clips.cut(probe, settings, row.start, row.end)
        try:
            picture = clips.picture_of(settings, probe.width, probe.height, probe.pixel_aspect, model.factor)
        except clips.Unfit as error:
            left_out.append(_left_out("unfit", row, f"{row.source}: {error}"))
            continue
        if not cut.spans:
            left_out.append(_left_out("too short", row, _too_short(row, cut, settings)))
            continue
        tail_frames += cut.tail
        identities = [_add(tasks, span, picture, row, probe, settings, recipe) for span in cut.spans]
        listed.append(Listed(row=row, clips=tuple(identities)))
    paths = {row.path for row in listing.rows}
    remarks = {
        path: each.remarks for path in paths if isinstance(each := found[path], Probe) and each.remarks
    }
    return DatasetPlan(
        settings=settings,
        model=model,
        digest=settings_digest(settings, model.digest),
        clips=tasks,
        listed=listed,
        left_out=left_out,
        videos=len(paths),
        passed_over=listing.passed_over,
        tail_frames=tail_frames,
        remarks=dict(sorted(remarks.items())),
    )


def _add(
    tasks: dict[str, ClipTask],
    span: clips.Span,
    picture: clips.Picture,
    row: Row,
    probe: Probe,
    settings: Settings,
    recipe: str,
) -> str:
    """Add a clip unless there is the same one; its identity."""
    identity = identity_of(
        recipe,
        source_sha256=probe.sha256,
        start=span.start,
        frames=span.frames,
        fps=settings.fps,
        box=picture.box,
        size=picture.size,
    )
    if identity not in tasks:
        tasks[identity] = ClipTask(
            identity=identity,
            path=row.path,
            source=row.source,
            source_sha256=probe.sha256,
            stamp=probe.stamp,
            start=span.start,
            last=span.last,
            end=span.end,
            frames=span.frames,
            fps=settings.fps,
            rate=settings.fps or probe.rate,
            read_from=span.read_from,
            original=(probe.width, probe.height),
            box=picture.box,
            size=picture.size,
            columns=plain(row.columns),
        )
    return identity


def _left_out(kind: Kind, row: Row, reason: str) -> LeftOut:
    return LeftOut(kind=kind, source=row.source, path=row.path, reason=reason)


def _too_short(row: Row, cut: clips.Cut, settings: Settings) -> str:
    if cut.frames:
        remedy = "--short keep makes a short clip of them"
        return f"{row.source}: {cut.frames} frames, and a clip has {settings.clip_frames}; {remedy}"
    stretch = f"from {float(row.start or 0):g} s" + ("" if row.end is None else f" to {float(row.end):g} s")
    return f"{row.source}: holds no frame {stretch}"


def _shown(left_out: list[LeftOut]) -> list[tuple[str, str]]:
    """How much is left out of each kind, and the first reasons."""
    lines: list[tuple[str, str]] = []
    for kind in KINDS:
        reasons = [each.reason for each in left_out if each.kind == kind]
        lines += [(kind, f"{len(reasons):,} rows")] if reasons else []
        lines += [("", reason) for reason in reasons[:NAMED]]
        lines += [("", "…")] if len(reasons) > NAMED else []
    return lines
