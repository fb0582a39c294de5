"""Machine code of kernels: compiled once on a machine (a few tenths of a second each), then loaded from the cache.

What comes out is a function that runs without the interpreter's lock, so that Python threads run it side by side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from temporal_vae.engine import cache
from temporal_vae.engine.kernels.simd import I64, Builder
from temporal_vae.engine.processor import Machine

Kernel = Callable[..., None]
Emit = Callable[..., None]


def kernel(emit: Emit, arguments: Sequence[str], machine: Machine, *name: object) -> Kernel:
    """The function that `emit(builder, machine, **arguments)` writes.

    Args:
        emit: writes the body.
        arguments: names of its 64-bit integer arguments; addresses among them.
        machine: what to compile for.
        name: tells this kernel from others, together with the sources.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    key = ("kernel", *name, machine, llvmlite.__version__, llvm.llvm_version_info)
    code = cache.read(*key)
    if code is None:
        code = compiled(emit, arguments, machine)
        cache.keep(code, *key)
    return loaded(code, len(arguments))


def compiled(emit: Emit, arguments: Sequence[str], machine: Machine) -> bytes:
    """An object file."""
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


def loaded(code: bytes, arguments: int) -> Kernel:
    """The function of an object file."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target(None))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ALIVE.append(engine)
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
    return prototype(engine.get_function_address(_SYMBOL))


def _target(machine: Machine | None) -> Any:
    """What is compiled for; None does for code that is compiled already."""
    features = {} if machine is None else {"cpu": machine.name, "features": machine.features}
    return llvm.Target.from_default_triple().create_target_machine(**features, opt=3, jit=True)


_SYMBOL = "kernel"
_ALIVE: list[Any] = []  # code lives as long as the engine that holds it
