"""What there is of the videos of one run: those that are done, and notes of latents that can't be decoded.

Both are files: a video, or a note in its place, appears when it is complete. So all ranks see what any of them did, and
a run that ended in whatever way knows what is over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from temporal_vae.distributed.dataset.decode_job import DecodeJob, DecodeTask, Outcome
from temporal_vae.distributed.dataset.places import Place
from temporal_vae.distributed.dataset.planning import Kind
from temporal_vae.distributed.dataset.summary import QUARANTINE
from temporal_vae.errors import MediaError

_NOTES = "left-out"


@dataclass(frozen=True, kw_only=True)
class Note:
    """Why there is no video of some latents; see `decode_job.Outcome`."""

    path: str
    reason: str
    kind: Kind
    passing: bool


class Videos:
    """The folder of a job's videos.

    Args:
        place: the folder of all videos.
        job: whose they are.
    """

    def __init__(self, place: Place, job: DecodeJob) -> None:
        self._place, self._job = place, job

    def look(self) -> tuple[set[str], dict[str, Note]]:
        """Identities of the videos that are there, and notes of others, by identity.

        Raises:
            MediaError: the folder can't be read.
        """
        done, notes = set(), {}
        for name in map(PurePosixPath, self._place.list(self._job.folder)):
            if name.suffix == self._job.settings.suffix:
                done.add(name.stem)
            elif name.parent.name == _NOTES and (note := self._note(name.stem)) is not None:
                notes[name.stem] = note
        return done, {identity: note for identity, note in notes.items() if identity not in done}

    def note(self, task: DecodeTask, outcome: Outcome) -> None:
        """Note why there is no video of some latents.

        Raises:
            MediaError: it can't be written.
        """
        note = Note(path=task.path, reason=outcome.reason or "", kind=outcome.kind, passing=outcome.passing)
        self._place.write(self._name(task.identity), json.dumps(asdict(note)).encode())

    def forget(self, identities: Iterable[str]) -> None:
        """Remove notes, so that it is tried again."""
        for identity in identities:
            self._place.remove(self._name(identity))

    def clean(self) -> None:
        """Remove what processes of this machine that are no more left half-written."""
        for folder in ("", self._job.folder, f"{self._job.folder}/{_NOTES}"):
            self._place.clean(folder)

    def _note(self, identity: str) -> Note | None:
        try:
            return Note(**json.loads(self._place.read(self._name(identity))))
        except (ValueError, TypeError, MediaError):
            return None  # it says nothing, or is gone meanwhile: it is tried again

    def _name(self, identity: str) -> str:
        return f"{self._job.folder}/{_NOTES}/{identity}.json"


def write_quarantine(place: Place, job: DecodeJob, notes: dict[str, Note], broken: dict[str, str]) -> None:
    """List what is left out of a run, and keep the lines of other settings.

    Args:
        place: the folder of all videos.
        job: of the run.
        notes: by identity.
        broken: files that are no latents, and why.

    Raises:
        MediaError: it can't be written.
    """
    entries = _lines_of_others(place, job.digest)
    for path, reason in broken.items():
        entries.append({"settings": job.digest, "kind": "unreadable", "path": path, "reason": reason})
    for identity, note in sorted(notes.items()):
        what = {"identity": identity, "path": note.path, "reason": note.reason}
        entries.append({"settings": job.digest, "kind": note.kind, **what})
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    place.write(QUARANTINE, "".join(lines).encode("utf-8", "backslashreplace"))


def _lines_of_others(place: Place, settings: str) -> list[dict[str, Any]]:
    if not place.exists(QUARANTINE):
        return []
    entries = []
    for line in place.read(QUARANTINE).decode(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            entries += [entry] if entry["settings"] != settings else []
        except (ValueError, KeyError, TypeError):
            continue  # a line that says nothing
    return entries
