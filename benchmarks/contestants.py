"""Who takes part, and why one of them cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ctypes.util import find_library
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from benchmarks import runtimes
from benchmarks.trials import Trial

OURS = "temporal-vae"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to run the model.

    Attributes:
        name: in tables and for `--contestant`.
        about: what it is, in a line.
        prepare: from a loaded model to a call that does the job once.
        needs: modules that must be installed.
        converts: takes a float32 model of diffusers whatever it then computes in.
        environment: variables of its process.
        preload: library that its process loads first, such as `jemalloc`.
        no_bfloat16: why it has no bfloat16, if so.
        trains: can do a training step.
    """

    name: str
    about: str
    prepare: Callable[[Any, Any, Trial], runtimes.Run] = runtimes.eager
    needs: tuple[str, ...] = ()
    converts: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    preload: str = ""
    no_bfloat16: str = ""
    trains: bool = False

    def obstacle(self, trial: Trial) -> str:
        """Why it cannot do `trial` here, in one line; empty if it can try."""
        if trial.trains and not self.trains:
            return "does not train"
        if trial.dtype == "bfloat16" and self.no_bfloat16:
            return self.no_bfloat16
        missing = [name for name in self.needs if not is_installed(name)]
        if missing:
            return f"{', '.join(missing)} is not installed; pip install 'temporal-vae[bench]'"
        if self.preload and not find_library(self.preload):
            return f"lib{self.preload} is not on this machine; install it with the system's package manager"
        return ""

    def process_environment(self) -> dict[str, str]:
        """Variables to start its process with."""
        library = find_library(self.preload) if self.preload else None
        return {**self.environment, **({"LD_PRELOAD": library} if library else {})}


def is_installed(module: str) -> bool:
    """Whether `module` can be imported."""
    return find_spec(module) is not None


_KEEP_GLIBC = ":".join(
    (
        "glibc.malloc.mmap_max=0",  # big blocks come from the heap too, where they can be used again
        "glibc.malloc.trim_threshold=1099511627776",  # and the heap is never given back
        "glibc.malloc.top_pad=67108864",
        "glibc.malloc.hugetlb=1",  # in huge pages
    )
)

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(name=OURS, about="this package", trains=True),
        Contestant(name="diffusers", about="the class of diffusers, eager", trains=True),
        Contestant(
            name="diffusers-compile", about="diffusers under torch.compile", prepare=runtimes.compiled
        ),
        Contestant(
            name="diffusers-malloc",
            about="diffusers, eager, with a glibc malloc that keeps what it once had, in huge pages",
            environment={"GLIBC_TUNABLES": _KEEP_GLIBC},
        ),
        Contestant(
            name="diffusers-jemalloc",
            about="diffusers, eager, on a jemalloc that keeps what it once had",
            environment={
                "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,thp:always"
            },
            preload="jemalloc",
        ),
        Contestant(
            name="diffusers-tcmalloc",
            about="diffusers, eager, on a tcmalloc that keeps what it once had",
            environment={"TCMALLOC_RELEASE_RATE": "0"},
            preload="tcmalloc",
        ),
        Contestant(
            name="openvino",
            about="OpenVINO in the precision of the race",
            prepare=runtimes.openvino,
            needs=("openvino",),
            converts=True,
        ),
        Contestant(
            name="onnxruntime",
            about="ONNX Runtime on the CPU",
            prepare=runtimes.onnxruntime,
            needs=("onnxruntime", "onnx", "onnxscript"),
            converts=True,
            no_bfloat16="no bfloat16: ONNX Runtime has no such convolution on CPUs",
        ),
    )
}


def default_names(trial: Trial) -> list[str]:
    """Those who take part unless named: all but allocators that are not here, and who cannot train."""
    return [
        name
        for name, contestant in CONTESTANTS.items()
        if (contestant.trains or not trial.trains)
        and (not contestant.preload or not contestant.obstacle(trial))
    ]
