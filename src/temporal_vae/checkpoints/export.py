"""A model as graphs that run without this package: ONNX files, or archives of `torch.export`.

Two graphs, each in a file of its own, for any batch, height and width:

    encoder   frames (n, c, h, w) in [-1, 1]      ->  mean, logvar (n, z, h/f, w/f), logvar clamped to [-30, 20]
    decoder   latents (b, t, z, h, w), unscaled   ->  frames (b, t, c, h*f, w*f), about [-1, 1], not clamped

Clips have an axis of their own, so that no graph needs to be told how long they are. What was written is run at shapes
that the tracing has not seen, and compared with the modules, before it appears under its name.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from temporal_vae import __version__
from temporal_vae.errors import CheckpointError, InputError, TemporalVaeError
from temporal_vae.namespace import need_extra
from temporal_vae.outputs import check_writable, complete_or_nothing

if TYPE_CHECKING:
    from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder

__all__ = ["Exported", "export_onnx", "export_torch"]

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
"""How far a graph may be from the modules in float32, as a share of the largest value."""

_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

Graph = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A graph that was written.

    Attributes:
        name: `encoder` or `decoder`.
        file: where it lies.
        error: the largest difference from the modules in float32, as a share of the largest value.
        shapes: of the inputs at which they were compared.
    """

    name: str
    file: Path
    error: float
    shapes: list[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One graph: the module it is made of, how its axes are called, and the inputs it is traced and tried at.

    `smallest` is the least length of a spatial axis; of the others it is 1.
    """

    name: str
    module: nn.Module
    input: str
    outputs: tuple[str, ...]
    axes: dict[int, str]
    smallest: int
    traced: tuple[int, ...]
    tried: list[tuple[int, ...]]


class _Encoder(nn.Module):
    def __init__(self, vae: AutoencoderKLTemporalDecoder) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.quant_conv(self.encoder(frames)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)  # as DiagonalGaussianDistribution does


class _Decoder(nn.Module):
    def __init__(self, vae: AutoencoderKLTemporalDecoder) -> None:
        super().__init__()
        self.decoder = vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        clips, frames = latents.shape[:2]
        return self.decoder(latents.flatten(0, 1), num_frames=frames).unflatten(0, (clips, frames))


def export_onnx(
    vae: AutoencoderKLTemporalDecoder, folder: str | Path, *, frames: int | None = None
) -> list[Exported]:
    """Write `encoder.onnx` and `decoder.onnx` to a new folder, each tried in ONNX Runtime on the CPU.

    Every file carries `temporal_vae_version`, `scaling_factor`, `spatial_factor`, `num_frames` and the `config` of the
    model as metadata. Above 2 GB the weights lie in a file beside it.

    Args:
        vae: a model in float32 or float16; its dtype is that of the graphs and of what goes in and out.
        folder: made here, once both files are complete and right.
        frames: the length of clips as a fixed axis of the decoder; None lets every call choose it.

    Returns:
        Encoder and decoder.

    Raises:
        InputError: another dtype, a length below 1, or a package that is not installed.
        MediaError: a folder that exists or cannot be made.
        CheckpointError: a model that cannot be exported, or whose graph computes something else.
    """
    need_extra("export", *_ONNX_PACKAGES)
    _check(vae, frames, (torch.float32, torch.float16), "ONNX Runtime on a CPU")
    return _export(vae, Path(folder), frames, ".onnx", _write_onnx, _read_onnx)


def export_torch(
    vae: AutoencoderKLTemporalDecoder, folder: str | Path, *, frames: int | None = None
) -> list[Exported]:
    """Write `encoder.pt2` and `decoder.pt2` to a new folder, archives that `torch.export.load` reads.

    `torch.export.load(file).module()` is the graph to call. The metadata of `export_onnx` lies in the archive as the
    extra file `metadata.json`. Reading an archive unpickles parts of it: it is no format to take from strangers.

    Args:
        vae: a model in float32, float16 or bfloat16.
        folder: as in `export_onnx`.
        frames: as in `export_onnx`.

    Returns:
        Encoder and decoder.

    Raises:
        InputError: a length below 1.
        MediaError: a folder that exists or cannot be made.
        CheckpointError: a model that cannot be exported, or whose graph computes something else.
    """
    _check(vae, frames, tuple(TOLERANCE), "torch on a CPU")
    return _export(vae, Path(folder), frames, ".pt2", _write_torch, _read_torch)


def _export(
    vae: AutoencoderKLTemporalDecoder,
    folder: Path,
    frames: int | None,
    suffix: str,
    write: Callable[[_Part, Tensor, dict[str, str], Path], None],
    read: Callable[[_Part, Path], Graph],
) -> list[Exported]:
    check_writable(folder, overwrite=False)
    done = []
    with complete_or_nothing(folder) as temporary, torch.no_grad(), _refusing(vae), _quiet():
        temporary.mkdir()
        for part in _parts(vae, frames):
            file = temporary / f"{part.name}{suffix}"
            write(part, _noise(part.traced).to(vae.dtype), _metadata(vae, frames), file)
            error = _largest_error(part, read(part, file), vae.dtype)
            if not error <= TOLERANCE[vae.dtype]:  # NaN is refused too
                raise CheckpointError(
                    f"{file.name}: is {error:.1e} of the largest value away from the model in float32, and "
                    f"{TOLERANCE[vae.dtype]:.0e} is allowed for {_name(vae.dtype)}; nothing was written; "
                    "export in float32"
                )
            done.append(Exported(name=part.name, file=folder / file.name, error=error, shapes=part.tried))
    return done


def _check(
    vae: AutoencoderKLTemporalDecoder, frames: int | None, dtypes: tuple[torch.dtype, ...], runtime: str
) -> None:
    if not vae.network.temporal:
        raise InputError(
            f"export: {type(vae).__name__} is an image autoencoder; what is exported is AutoencoderKLTemporalDecoder"
        )
    if frames is not None and frames < 1:
        raise InputError(f"export: frames={frames} is no length of a clip; pass a number from 1 up, or None")
    if vae.dtype not in dtypes:
        raise InputError(
            f"export: the model is in {_name(vae.dtype)}, in which {runtime} could not try the graphs; "
            f"load it in {' or '.join(map(_name, dtypes))}"
        )


def _parts(vae: AutoencoderKLTemporalDecoder, frames: int | None) -> list[_Part]:
    f, c, z = vae.spatial_factor, vae.config.in_channels, vae.config.latent_channels
    time = {1: "frames"} if frames is None else {}
    return [
        _Part(
            name="encoder",
            module=_for_export(_Encoder(vae)),
            input="frames",
            outputs=("mean", "logvar"),
            axes={0: "batch", 2: "height", 3: "width"},
            smallest=f,
            traced=(2, c, 6 * f, 10 * f),
            tried=[(1, c, f, 3 * f), (3, c, 6 * f - 1, 4 * f + 1)],
        ),
        _Part(
            name="decoder",
            module=_for_export(_Decoder(vae)),
            input="latents",
            outputs=("frames",),
            axes={0: "clips", **time, 3: "height", 4: "width"},
            smallest=1,
            traced=(2, frames or 3, z, 6, 10),
            tried=[(1, frames or 1, z, 3, 1), (1, frames or 5, z, 1, 7), (3, frames or 2, z, 5, 4)],
        ),
    ]


def _for_export(module: nn.Module) -> nn.Module:
    """A copy on the CPU that no export can leave a trace in."""
    return copy.deepcopy(module).cpu().eval().requires_grad_(False)


def _metadata(vae: AutoencoderKLTemporalDecoder, frames: int | None) -> dict[str, str]:
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    return {
        "temporal_vae_version": __version__,
        "scaling_factor": str(vae.config.scaling_factor),
        "spatial_factor": str(vae.spatial_factor),
        "num_frames": "any" if frames is None else str(frames),
        "config": json.dumps(config),
    }


def _write_onnx(part: _Part, sample: Tensor, metadata: dict[str, str], file: Path) -> None:
    program = torch.onnx.export(
        part.module,
        (sample,),
        input_names=[part.input],
        output_names=list(part.outputs),
        dynamic_shapes=(part.axes,),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export made no program")
    for node in program.model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # where the code lies on this machine
    program.model.metadata_props.update(metadata)
    program.save(file)


def _read_onnx(part: _Part, file: Path) -> Graph:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(value) for value in session.run(None, {part.input: x.numpy()})]


def _write_torch(part: _Part, sample: Tensor, metadata: dict[str, str], file: Path) -> None:
    axes = dict.fromkeys(part.axes, Dim.DYNAMIC)
    program = torch.export.export(part.module, (sample,), dynamic_shapes=(axes,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where the code lies on this machine
    _widen(program, part)
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})


def _widen(program: ExportedProgram, part: _Part) -> None:
    """Let a graph take the sizes that it computes rightly, not only those for which tracing proved its strides.

    Tracing takes no axis for 1 that it did not see as 1, and writes down what it concluded about memory layouts of
    intermediate tensors, on which no operator of these graphs depends. That they don't is tried, at the least of sizes.
    """
    if hasattr(program, "_guards_code"):  # torch before 2.9 wrote down the ranges alone
        program._guards_code = []
    sample = next(
        node for node in program.graph.nodes if node.op == "placeholder" and node.name == part.input
    )
    for axis, name in part.axes.items():
        symbol = sample.meta["val"].shape[axis].node.expr
        least = part.smallest if name in ("height", "width") else 1
        program.range_constraints[symbol] = ValueRanges(least, program.range_constraints[symbol].upper)


def _read_torch(part: _Part, file: Path) -> Graph:
    program = torch.export.load(file).module()

    def run(x: Tensor) -> Sequence[Tensor]:
        result = program(x)
        return (result,) if isinstance(result, Tensor) else result

    return run


def _largest_error(part: _Part, graph: Graph, dtype: torch.dtype) -> float:
    """The largest difference from the modules in float32, as a share of the largest value."""
    module = copy.deepcopy(part.module).float()
    errors = []
    for shape in part.tried:
        sample = _noise(shape).to(dtype)
        expected = module(sample.float())
        for found, right in zip(
            graph(sample), expected if isinstance(expected, tuple) else (expected,), strict=True
        ):
            if found.shape != right.shape:
                raise RuntimeError(
                    f"gives {tuple(found.shape)} for {shape}, the modules {tuple(right.shape)}"
                )
            errors.append((found.float() - right).abs().max() / right.abs().max())
    return torch.stack(errors).max().item()


def _noise(shape: tuple[int, ...]) -> Tensor:
    """Values between -1 and 1, the same on every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _refusing(vae: AutoencoderKLTemporalDecoder) -> Iterator[None]:
    """Say on one line what the exporters say on many, in exceptions of many kinds."""
    try:
        yield
    except (TemporalVaeError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise CheckpointError(
            f"{type(vae).__name__}: cannot be exported ({type(error).__name__}: {reason.rstrip('.')}); export the "
            "model as it was loaded, without adapters, quantised layers or offloading"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what concerns the exporters' own code: old names, and operators of torchvision, which no graph here has."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.`", FutureWarning)
            yield
    finally:
        registry.setLevel(before)
