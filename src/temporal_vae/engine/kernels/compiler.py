"""Machine code of kernels: compiled once on a machine (a few tenths of a second each), then loaded from the cache.

What comes out is a `Sweep`: every worker calls it once for a pass, without the interpreter's lock, and it takes jobs by
an atomic counter until none is left.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from temporal_vae.engine import cache
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.control import I64, Value
from temporal_vae.engine.processor import Machine

Emit = Callable[..., None]


class Function(Protocol):
    """A function in machine code, of 64-bit integers."""

    address: int

    def __call__(self, *given: int) -> None:
        """Call it, without the interpreter's lock."""


Sweep = Function
"""`sweep(call, jobs, count, ticket, scratch, most)`, all of them addresses but `count` and `most`.

`call` holds the fields that all jobs share, `jobs` those of each of `count` jobs, as 64-bit integers; `ticket` the
number of the next job, which several threads count up; `scratch` belongs to the calling thread, which takes at most
`most` jobs.
"""


def sweep(emit: Emit, call: Sequence[str], job: Sequence[str], machine: Machine, *name: object) -> Sweep:
    """A kernel that does a job as `emit(builder, machine, scratch=, **fields)` writes it.

    Args:
        emit: writes what is done for one job.
        call: names of the fields that all jobs share.
        job: names of the fields of a job.
        machine: what to compile for.
        name: tells this kernel from others, together with the sources.
    """

    def emit_all(b: Builder, machine: Machine, **given: Value) -> None:
        shared = {field: b.word(b.add(given["call"], 8 * i)) for i, field in enumerate(call)}
        with b.turns(given["ticket"], given["count"], given["most"]) as index:
            place = b.add(given["jobs"], b.mul(index, 8 * len(job)))
            own = {field: b.word(b.add(place, 8 * i)) for i, field in enumerate(job)}
            emit(b, machine, scratch=given["scratch"], **shared, **own)

    return function(emit_all, _SWEEP, machine, *name)


def function(emit: Emit, arguments: Sequence[str], machine: Machine, *name: object) -> Function:
    """What `compiled` makes, loaded; from the cache, if it was made on this machine before.

    `name` tells it from others, together with the sources.
    """
    key = ("kernel", *name, machine, llvmlite.__version__, llvm.llvm_version_info)
    code = cache.read(*key)
    if code is None:
        code = compiled(emit, arguments, machine)
        cache.keep(code, *key)
    return loaded(code, len(arguments))


def compiled(emit: Emit, arguments: Sequence[str], machine: Machine) -> bytes:
    """An object file with the function that `emit(builder, machine, **arguments)` writes, of 64-bit integers."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module()
    module.triple = llvm.get_default_triple()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * len(arguments)), _SYMBOL)
    builder = Builder(function, machine.lanes)
    emit(builder, machine, **dict(zip(arguments, function.args, strict=True)))
    builder.ir.ret_void()
    target = _target(machine)
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False
    options.loop_vectorization = False
    options.slp_vectorization = False
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(compiled, passes)
    return bytes(target.emit_object(compiled))


def loaded(code: bytes, arguments: int) -> Function:
    """The function of an object file."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target(None))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ALIVE.append(engine)
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
    address = engine.get_function_address(_SYMBOL)
    found: Any = prototype(address)
    found.address = address
    function: Function = found
    return function


def _target(machine: Machine | None) -> Any:
    """What is compiled for; None does for code that is compiled already."""
    features = {} if machine is None else {"cpu": machine.name, "features": machine.features}
    return llvm.Target.from_default_triple().create_target_machine(**features, opt=3, jit=True)


_SWEEP = ("call", "jobs", "count", "ticket", "scratch", "most")
_SYMBOL = "kernel"
_ALIVE: list[Any] = []  # code lives as long as the engine that holds it
