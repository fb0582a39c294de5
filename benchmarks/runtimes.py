"""How each contestant is made ready: a function from a loaded model to a call that does the job once.

They run in the child process. What a call returns is a tensor or an array, of frames for decode and training, of
moments for encode.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.trials import Trial

Run = Callable[[], Any]


def eager(model: Any, sample: Any, trial: Trial) -> Run:
    """The modules as they are; the one runtime that trains."""
    if trial.memory_limit is not None and type(model).__module__.startswith("temporal_vae"):
        model.enable_tiling(memory_limit=trial.memory_limit)
    if trial.trains:
        return _training_step(model, sample, trial)
    return inference(model, sample, trial)


def compiled(model: Any, sample: Any, trial: Trial) -> Run:
    """`torch.compile` of encoder and decoder in its default mode; the first call compiles."""
    import torch

    # Load the compiler now, so that it counts as part of the loaded model and not as memory of the job.
    torch.compile(lambda x: x + 1)(torch.zeros(1))
    model.encoder.compile()
    model.decoder.compile()
    return inference(model, sample, trial)


def openvino(model: Any, sample: Any, trial: Trial) -> Run:
    """OpenVINO on the CPU in the trial's precision; converted from the module, or by way of ONNX."""
    # Without this module OpenVINO has nothing to report its use with, to anyone or while others are timed.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino as ov

    module = _as_module(model, trial)
    try:
        graph = ov.convert_model(module, example_input=sample, input=[tuple(sample.shape)])
    except Exception:
        with tempfile.TemporaryDirectory() as folder:
            graph = ov.Core().read_model(_export_onnx(module, sample, Path(folder)))
    network = ov.Core().compile_model(
        graph,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[trial.dtype],
            "INFERENCE_NUM_THREADS": trial.threads,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    array = sample.numpy()
    return lambda: network(array)[0]


def onnxruntime(model: Any, sample: Any, trial: Trial) -> Run:
    """ONNX Runtime's CPU provider on the exported graph."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = trial.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle while others are timed
    with tempfile.TemporaryDirectory() as folder:
        path = _export_onnx(_as_module(model, trial), sample, Path(folder))
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: sample.numpy()}
    return lambda: session.run(None, feed)[0]


def inference(model: Any, sample: Any, trial: Trial) -> Run:
    """The job without gradients; a training job is then its forward."""
    import torch

    @torch.no_grad()
    def run() -> Any:
        if trial.job == "encode":
            return model.encode(sample).latent_dist.parameters
        if trial.job == "decode":
            return model.decode(sample, **trial.length).sample
        return model(sample, **trial.length).sample

    return run


def _training_step(model: Any, sample: Any, trial: Trial) -> Run:
    """Forward, backward and a step of AdamW whose rate is zero, so that every call does the same.

    Weights are float32; bfloat16 is that of autocast.
    """
    import torch

    from temporal_vae.checkpoints.names import is_temporal
    from temporal_vae.training.objective import Autoencoding

    temporal = trial.job == "train-temporal"
    if trial.job == "train-checkpointed":
        model.enable_gradient_checkpointing()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not temporal or is_temporal(name))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.0, weight_decay=0.0)

    ours = type(model).__module__.startswith("temporal_vae")
    forward = Autoencoding(model) if ours else None  # what `temporal-vae train` runs

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=trial.dtype == "bfloat16"):
            if forward is not None:
                result, _, _ = forward(sample, trial.case.frames, None)
            else:
                with torch.set_grad_enabled(not temporal):
                    # torch 2.13 crashes with a view in the backward of a norm whose input wants no gradient
                    latents = model.encode(sample).latent_dist.mode().contiguous()
                result = model.decode(latents, num_frames=trial.case.frames).sample.float()
        (result - sample).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return result

    return run


def _as_module(model: Any, trial: Trial) -> Any:
    """The job as a module from one tensor to one tensor, for converters."""
    from torch import nn

    class Decode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, latents: Any) -> Any:
            return self.model.decode(latents, **trial.length).sample

    class Encode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, frames: Any) -> Any:
            return self.model.quant_conv(self.model.encoder(frames))

    return (Decode() if trial.job == "decode" else Encode()).eval().requires_grad_(False)


def _export_onnx(module: Any, sample: Any, folder: Path) -> str:
    import torch

    path = str(folder / "model.onnx")
    torch.onnx.export(module, (sample,), path, dynamo=True, verbose=False)
    return path
