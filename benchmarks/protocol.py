"""A race: everyone does the same job in turn, round by round, after the results were found to be right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import CONTESTANTS, default_names
from benchmarks.process import Worker, WorkerFailed
from benchmarks.trials import Trial, nominal_operations
from temporal_vae.errors import InputError

if TYPE_CHECKING:
    import numpy as np

Say = Callable[[str], None]
"""Told what happens, in short lines."""

FLOAT32_ERROR = 5e-5
"""Largest difference from diffusers eager in float32, as a share of the largest value, that a float32 race accepts."""

BFLOAT16_FACTOR = 2.0
"""A bfloat16 race accepts this many times the error of diffusers in bfloat16."""

_PAUSE = 0.05  # seconds after each call, in which the threads of a runtime come to rest


@dataclass(kw_only=True)
class Row:
    """One contestant in a race.

    Attributes:
        contestant: its name.
        reason: why it has no times; empty if it has.
        error: largest difference from the reference, as a share of its largest value.
        seconds: of each round.
        prepare_seconds: conversion and compilation before the first call.
        first_seconds: of the first call, which compiles or packs weights where that was not done before.
        resting_bytes: resident memory with the model loaded.
        first_peak_bytes: peak of resident memory above that in the first call.
        peak_bytes: the same in the rounds.
    """

    contestant: str
    reason: str = ""
    error: float | None = None
    seconds: list[float] = field(default_factory=list)
    prepare_seconds: float = 0.0
    first_seconds: float = 0.0
    resting_bytes: int = 0
    first_peak_bytes: int = 0
    peak_bytes: int = 0


@dataclass(kw_only=True)
class Race:
    """What a race found.

    Attributes:
        trial: what was done.
        rows: the contestants, in the order they were named.
        error_limit: the largest error that was accepted.
        operations: the nominal count, `None` for training.
        ceiling: rates of the machine in GFLOP/s, `conv` and `gemm`.
    """

    trial: Trial
    rows: list[Row]
    error_limit: float
    operations: int | None
    ceiling: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What diffusers computes.

    Attributes:
        config: widths, layers and channels of the model.
        result: diffusers eager in float32.
        bfloat16_error: how far from it diffusers eager in bfloat16 is; 0 if it was not asked for.
    """

    config: dict[str, Any]
    result: np.ndarray[Any, Any]
    bfloat16_error: float

    def error_limit(self, dtype: str) -> float:
        """The largest error that a race in `dtype` accepts."""
        return FLOAT32_ERROR if dtype == "float32" else BFLOAT16_FACTOR * self.bfloat16_error


def run_races(
    trials: Sequence[Trial], *, contestants: Sequence[str], rounds: int, say: Say
) -> Iterator[Race]:
    """Run one race per trial.

    Args:
        trials: what to do; neighbours that differ only in dtype share a reference.
        contestants: names; none for all that can take part here.
        rounds: timed calls of each, after one that is checked.
        say: told what happens, in short lines.

    Yields:
        Each race when it is over.

    Raises:
        InputError: a clip that the model cannot take, or a model that diffusers cannot load.
    """
    reference, computed = None, None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for trial in trials:
            if (trial.job, trial.case) != computed:
                say(f"{trial.job} {trial.case}: reference")
                reference = _compute_reference(trial, folder, {other.dtype for other in trials})
                computed = trial.job, trial.case
            assert reference is not None
            names = contestants or default_names(trial)
            yield _race(trial, names, rounds, reference, folder, say)


def _compute_reference(trial: Trial, folder: Path, dtypes: set[str]) -> Reference:
    """Compute what is right, in a process that is gone before anyone is timed."""
    path = folder / "reference.npy"
    with closing(Worker("reference", trial, folder)) as worker:
        try:
            worker.wait_for_imports()
            config = worker.load()["config"]
            _check_size(trial, config)
            answer = worker.ask(save=str(path), bfloat16="bfloat16" in dtypes)
        except WorkerFailed as failure:
            raise InputError(f"--model {trial.model}: diffusers failed with it ({failure})") from None
    return Reference(config=config, result=_load(path), bfloat16_error=answer.get("bfloat16_error", 0.0))


def _check_size(trial: Trial, config: dict[str, Any]) -> None:
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if trial.case.height % factor or trial.case.width % factor:
        raise InputError(
            f"case {trial.case}: height and width have to be multiples of {factor} for model {trial.model}"
        )


def _race(
    trial: Trial, names: Sequence[str], rounds: int, reference: Reference, folder: Path, say: Say
) -> Race:
    title = f"{trial.job} {trial.case} {trial.dtype}"
    rows = {name: Row(contestant=name) for name in names}
    limit = reference.error_limit(trial.dtype)
    with ExitStack() as stack:
        say(f"{title}: start")
        ceiling, workers = _start(trial, rows, folder, stack)
        for name in tuple(workers):
            say(f"{title}: {name}")
            with _failure_ends(rows[name], workers):
                _admit(rows[name], workers[name], reference, limit, folder / "result.npy")
        rates = []
        for number in range(rounds):
            say(f"{title}: round {number + 1} of {rounds}")
            rates.append(ceiling.ask())
            for name in _begin_with(number, tuple(workers)):
                with _failure_ends(rows[name], workers):
                    _time_once(rows[name], workers[name])
    return Race(
        trial=trial,
        rows=list(rows.values()),
        error_limit=limit,
        operations=nominal_operations(trial.job, trial.case, reference.config),
        ceiling={kind: max(rate[kind] for rate in rates) for kind in ("conv", "gemm")},
    )


def _start(
    trial: Trial, rows: dict[str, Row], folder: Path, stack: ExitStack
) -> tuple[Worker, dict[str, Worker]]:
    """Start the ceiling and all contestants that can run here; their imports are over when this returns."""
    workers = {}
    for name, row in rows.items():
        contestant = CONTESTANTS[name]
        row.reason = contestant.obstacle(trial)
        if not row.reason:
            workers[name] = Worker(name, trial, folder, contestant.process_environment())
            stack.callback(workers[name].close)
    ceiling = Worker("ceiling", trial, folder)
    stack.callback(ceiling.close)
    for name in tuple(workers):
        with _failure_ends(rows[name], workers):
            workers[name].wait_for_imports()
    ceiling.wait_for_imports()
    ceiling.load()
    return ceiling, workers


@contextmanager
def _failure_ends(row: Row, workers: dict[str, Worker]) -> Iterator[None]:
    """Write down why a contestant failed and go on without it."""
    try:
        yield
    except WorkerFailed as failure:
        row.reason = str(failure)
        workers.pop(row.contestant).close()


def _begin_with(number: int, names: Sequence[str]) -> Sequence[str]:
    """`names` in a circle, from another one each round, so that everyone has every place."""
    first = number % max(len(names), 1)
    return [*names[first:], *names[:first]]


def _admit(row: Row, worker: Worker, reference: Reference, limit: float, path: Path) -> None:
    """Let a contestant get ready and do the job once, and compare; whoever is wrong is not timed."""
    row.prepare_seconds = worker.load()["prepare_seconds"]
    row.resting_bytes = worker.resting_bytes
    answer = worker.ask(save=str(path))
    row.first_seconds = answer["seconds"]
    row.first_peak_bytes = answer["peak_bytes"] - row.resting_bytes
    result = _load(path)
    if result.shape != reference.result.shape:
        raise WorkerFailed(f"wrong shape: {result.shape}, but {reference.result.shape} is right")
    row.error = relative_error(result, reference.result)
    if not row.error <= limit:  # NaN is refused too
        raise WorkerFailed(f"wrong numbers: error {row.error:.1e}, accepted is {limit:.1e}; not timed")
    sleep(_PAUSE)


def _time_once(row: Row, worker: Worker) -> None:
    answer = worker.ask()
    row.seconds.append(answer["seconds"])
    row.peak_bytes = max(row.peak_bytes, answer["peak_bytes"] - row.resting_bytes)
    sleep(_PAUSE)


def relative_error(result: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> float:
    """Largest absolute difference, as a share of the largest value of `exact`."""
    return float(abs(result - exact).max() / abs(exact).max())


def _load(path: Path) -> np.ndarray[Any, Any]:
    import numpy as np

    result: np.ndarray[Any, Any] = np.load(path)
    path.unlink()
    return result
