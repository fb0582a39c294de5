"""A child process: makes one contestant ready, then does its job once per request. JSON lines in and out.

    python -m benchmarks.worker ROLE

ROLE is the name of a contestant, `reference` or `ceiling`. An empty answer says that the libraries are loaded. The
first line in is the trial, and its answer says what was made ready; then each request is answered. It ends with its
input.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from time import perf_counter
from typing import Any

from benchmarks.ceiling import measure_ceiling
from benchmarks.contestants import CONTESTANTS, OURS, Contestant
from benchmarks.models import load_model, make_input, shape_config
from benchmarks.runtimes import inference
from benchmarks.trials import Trial

CLIPS_CLASS, PICTURES_CLASS = "AutoencoderKLTemporalDecoder", "AutoencoderKL"

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""Does what a request asks for: `{"save": path}` also writes the result there, as float32."""


def main() -> None:
    """Serve one role until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log

    def reply(fields: dict[str, Any]) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    try:
        load = _import_role(sys.argv[1])
        reply({})
        ready, answer = load(Trial.from_dict(json.loads(sys.stdin.readline())))
        gc.collect()
        _give_back_memory()
        reply(ready)
        for line in sys.stdin:
            reply(answer(json.loads(line)))
    except Exception as error:  # whatever a peer throws becomes the reason of its row
        reply({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        raise


def _import_role(role: str) -> Callable[[Trial], tuple[dict[str, Any], Answer]]:
    """Import what a role works with; return how it is made ready for a trial."""
    import torch

    library = None if role == "ceiling" else _library(role)

    def load(trial: Trial) -> tuple[dict[str, Any], Answer]:
        torch.set_num_threads(trial.threads)
        model_class = getattr(library, PICTURES_CLASS if trial.pictures else CLIPS_CLASS, None)
        if role == "ceiling":
            return {}, lambda request: measure_ceiling(trial.dtype)
        if role == "reference":
            return _reference(model_class, trial)
        return _contestant(CONTESTANTS[role], model_class, trial)

    return load


def _contestant(contestant: Contestant, model_class: Any, trial: Trial) -> tuple[dict[str, Any], Answer]:
    dtype = "float32" if contestant.converts or trial.trains else trial.dtype
    model = load_model(model_class, trial, dtype)
    sample = make_input(trial, model.config, dtype)
    began = perf_counter()
    run = contestant.prepare(model, sample, trial)
    ready = {"prepare_seconds": perf_counter() - began}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        began = perf_counter()
        result = run()
        seconds = perf_counter() - began
        if "save" in request:
            _save(result, request["save"])
        return {"seconds": seconds}

    return ready, answer


def _reference(model_class: Any, trial: Trial) -> tuple[dict[str, Any], Answer]:
    """Diffusers, eager: the result in float32, and how far from it diffusers in bfloat16 is."""
    import torch

    model = load_model(model_class, trial, "float32")

    def result(dtype: str) -> torch.Tensor:
        sample = make_input(trial, model.config, dtype)
        exact: torch.Tensor = inference(model.to(getattr(torch, dtype)), sample, trial)()
        return exact.float()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        exact = result("float32")
        _save(exact, request["save"])
        if not request["bfloat16"]:
            return {}
        return {"bfloat16_error": float((result("bfloat16") - exact).abs().max() / exact.abs().max())}

    return {"config": shape_config(model)}, answer


def _library(name: str) -> Any:
    """Ours, or diffusers for everyone else; its classes are imported, which is no part of making a model ready."""
    library = import_module("temporal_vae" if name == OURS else "diffusers")
    for kind in (PICTURES_CLASS, CLIPS_CLASS):
        getattr(library, kind)
    return library


def _save(result: Any, path: str) -> None:
    import numpy as np
    import torch

    array = result.detach().float().numpy() if isinstance(result, torch.Tensor) else result
    np.save(path, np.asarray(array, dtype=np.float32))


def _give_back_memory() -> None:
    """Return to the system what loading left behind, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    main()
