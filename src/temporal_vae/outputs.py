"""Outputs that appear under their name only when they are complete, and never in the place of a source."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

from temporal_vae.errors import MediaError, file_name

LONGEST_NAME = 255  # bytes that file systems take
_ROOM = 96  # bytes of a temporary name beside what it keeps of the target's
_SMALL = 2**16  # bytes of a file that a disk with room takes
_unfinished: set[Path] = set()  # of this process
_numbers = count()


@contextmanager
def complete_or_nothing(target: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `target`, with its suffix; rename it to `target` if the block ends well.

    The block writes a file or a folder there. If it raises, Ctrl-C included, what it wrote is removed and whatever
    `target` held before stays as it was. A folder takes the place of an earlier folder. Where `target` is a link, what
    it points to is written; a file that is replaced leaves its permissions to the new one. What processes that were
    killed left of the same target is removed first.

    Raises:
        MediaError: a target that can't be written.
    """
    check_writable(target)
    shown, target = target, _followed(target)
    _remove_leftovers(target)
    temporary = temporary_name(target)
    _unfinished.add(temporary)
    try:
        yield temporary
        with writing(shown):
            if temporary.is_dir() and target.is_dir():
                _swap(temporary, target)
            else:
                if target.is_file():
                    shutil.copymode(target, temporary)
                temporary.replace(target)
    finally:
        _remove(temporary)
        _unfinished.discard(temporary)


@contextmanager
def durable(target: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write, that has the name `target` once it is on the disk as a whole; missing folders are made.

    After a power cut it is there, or what had the name before. If the block raises, what it wrote is removed. Unlike
    `complete_or_nothing` it does not look for what others left, so that it costs the same among a million files.

    Raises:
        MediaError: a target that can't be written.
    """
    temporary = temporary_name(target)
    _unfinished.add(temporary)
    try:
        with writing(target):
            _make_durable(target.parent)
            with temporary.open("xb") as file:
                yield file
            _publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


def publish(temporary: Path, target: Path) -> None:
    """Give a complete file of the same disk the name `target`, once it is on the disk; missing folders are made.

    Raises:
        MediaError: a target that can't be written.
    """
    with writing(target):
        _make_durable(target.parent)
        _publish(temporary, target)


def _publish(temporary: Path, target: Path) -> None:
    _sync(temporary)
    temporary.replace(target)
    _sync(target.parent)


def _make_durable(folder: Path) -> None:
    """Make a folder and those above it."""
    if not folder.is_dir():
        _make_durable(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk; folders where the system can."""
    if os.name == "posix" or path.is_file():
        number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """Say in one line of `MediaError` which output the system could not write, and why."""
    try:
        yield
    except MediaError:
        raise
    except OSError as error:
        raise failed_to_write(target, error) from error


def failed_to_write(target: str | Path, error: Exception) -> MediaError:
    """The error for an output that the system did not take."""
    reason = (getattr(error, "strerror", None) or str(error) or "unknown error").lower()
    if getattr(error, "errno", None) == errno.ENOSPC and _takes_no_files(Path(target).parent):
        reason += " for another file: it has no inodes left"
    return MediaError(f"{file_name(target)}: can't be written ({reason}); check the disk and its free space")


def _takes_no_files(folder: Path) -> bool:
    """Whether the disk of a folder, that may be yet to be made, has as many files as it can have."""
    with suppress(OSError, AttributeError):  # there is no statvfs everywhere
        there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
        disk = os.statvfs(there)
        return disk.f_files > 0 and disk.f_favail == 0
    return False


def refusal(folder: Path) -> OSError | None:
    """Why the system takes no small file in a folder; None where it does."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_SMALL))
    except OSError as error:
        return error
    return None


def anything_unfinished() -> bool:
    """Whether this process is writing an output now."""
    return bool(_unfinished)


def check_writable(target: str | Path, *, overwrite: bool = True) -> None:
    """Raise `MediaError` where `target` could not be written: before any work is done for it."""
    name = file_name(target)
    if not name.strip():
        raise MediaError("the output has no name; give a file or a folder")
    if str(target) == "-":
        raise MediaError("-: nothing is written to standard output; give a file (./- for one of that name)")
    target, given = _followed(target), Path(target)
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise MediaError(f"{name}: the name is longer than {LONGEST_NAME} bytes; choose a shorter one")
    try:
        here = Path.cwd()
        if target == here or target in here.parents:
            raise MediaError(f"{name}: is the folder that you are in, or holds it; name a new one")
        if target.is_symlink():
            raise MediaError(f"{name}: is a link that leads nowhere but to itself; choose another name")
        _check_folder(name, given, target.parent)
        if not target.exists():
            return
        _check_replaceable(name, target, overwrite=overwrite)
    except OSError as error:
        raise failed_to_write(name, error) from error


def _check_folder(name: str, given: Path, folder: Path) -> None:
    shown = file_name(given.parent if not given.is_symlink() else folder)
    if not folder.is_dir():
        raise MediaError(f"{name}: there is no folder {shown}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MediaError(f"{name}: the folder {shown} can't be written to; choose another one")


def _check_replaceable(name: str, target: Path, *, overwrite: bool) -> None:
    mode = target.stat().st_mode
    if not overwrite:
        raise MediaError(f"{name}: exists already; choose another name or allow overwriting")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise MediaError(f"{name}: is neither a file nor a folder; choose another name")
    if not mode & 0o222 or not os.access(target, os.W_OK):  # the first also for root, who may write anything
        raise MediaError(f"{name}: is read-only; choose another name, or allow writing to it")


def check_readable(source: str | Path) -> None:
    """Raise `MediaError` where `source` is no file that can be read."""
    name, path = file_name(source), Path(source)
    if not name.strip():
        raise MediaError("the source has no name; give a file")
    try:
        if path.is_dir():
            raise MediaError(f"{name}: is a folder; give a file")
        if not path.exists():
            raise MediaError(f"{name}: no such file; check the path")
        with path.open("rb"):
            pass
    except OSError as error:
        raise MediaError(f"{name}: can't be read ({(error.strerror or 'unknown error').lower()})") from error


def check_apart(outputs: Iterable[str | Path], sources: Iterable[str | Path]) -> None:
    """Raise `MediaError` where an output is a source, under whatever name, or a folder that a source lies in.

    A folder that images are written to is replaced as a whole.
    """
    targets = [Path(output) for output in outputs]
    for source in map(Path, sources):
        for target in targets:
            places = (source, source.parent) if target.is_dir() else (source,)
            if any(_are_one(target, place) for place in places):
                what = "is the source itself:" if _are_one(target, source) else "holds the source"
                raise MediaError(f"{file_name(target)}: {what} {file_name(source)}; write to another name")
    for index, target in enumerate(targets):
        if any(_are_one(target, other) for other in targets[:index]):
            raise MediaError(f"{file_name(target)}: is two outputs at once; write to another name")


def _are_one(first: Path, second: Path) -> bool:
    with suppress(OSError):  # one of them is not there yet
        return first.samefile(second)
    return os.path.realpath(first) == os.path.realpath(second)


def _followed(target: str | Path) -> Path:
    """The target itself, or what it is a link to; absolute."""
    return Path(os.path.realpath(target))


def temporary_name(target: Path) -> Path:
    """A name beside `target` that no other process takes, and by which it is known what is left of dead ones."""
    return target.with_name(f"{_beginning(target)}{os.getpid()}-{next(_numbers)}.part{_suffix(target)}")


def _beginning(target: Path) -> str:
    """What temporary names of a target begin with, on this machine; short enough for any file system."""
    stem = target.stem
    most = LONGEST_NAME - _ROOM - len(os.fsencode(_suffix(target)))
    if len(os.fsencode(stem)) > most:
        kept = os.fsencode(stem)[: most - 9].decode("utf-8", "ignore")
        stem = f"{kept}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
    return f".{stem}.{_machine()}-"


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _suffix(target: Path) -> str:
    return target.suffix if len(os.fsencode(target.suffix)) < 32 else ""


def _remove_leftovers(target: Path) -> None:
    """Remove what processes that are no more left of a target, and put back a folder they had moved out of the way."""
    name = re.escape(_beginning(target)) + r"(\d+)-\d+\.part" + re.escape(_suffix(target))
    with suppress(OSError):
        for path in _left_by_the_dead(target.parent, rf"{name}(\.old)?"):
            if path.name.endswith(f".part{_suffix(target)}.old") and not target.exists():
                path.rename(target)
            else:
                _remove(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that are no more left in a folder, of whatever target.

    Others may do so at the same time, and what belongs to another user stays.
    """
    if folder.is_dir():
        for path in _left_by_the_dead(folder, _any_temporary()):
            if not path.name.endswith(".old"):
                with suppress(OSError):
                    _remove(path)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[None]:
    """Have a folder of a `temporary_name` while the block runs; what dead processes left beside it is removed."""
    remove_leftovers(folder.parent)
    _unfinished.add(folder)  # or others of this process would take it for such
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unfinished.discard(folder)


def is_left_over(name: str) -> bool:
    """Whether a name is a temporary one of another process of this machine, which is no more."""
    match = re.fullmatch(_any_temporary(), name)
    return match is not None and int(match[1]) != os.getpid() and not _is_alive(int(match[1]))


def _any_temporary() -> str:
    """Pattern of the temporary names of this machine; its first group is the process."""
    return rf"\..+\.{_machine()}-(\d+)-\d+\.part(\..+)?"


def _left_by_the_dead(folder: Path, pattern: str) -> list[Path]:
    """Entries whose names match, of processes that are no more; the first group of the pattern is the process."""
    found = [(path, re.fullmatch(pattern, path.name)) for path in sorted(folder.iterdir())]
    return [
        path
        for path, match in found
        if match
        and path.with_name(path.name.removesuffix(".old")) not in _unfinished
        and not _is_alive(int(match[1]))
    ]


def _is_alive(process: int) -> bool:
    """Whether another process of that number runs. One of our own number, in a container say, was another before us."""
    if process == os.getpid():
        return False
    if os.name != "posix":  # asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _swap(temporary: Path, target: Path) -> None:
    """Put a folder in the place of another one, which is not empty and so can't be replaced in one step."""
    old = target.with_name(f"{temporary.name}.old")
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
