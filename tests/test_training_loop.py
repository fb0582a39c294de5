"""Training runs: interrupted, killed, resumed, in several processes, with losses that are not finite."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from command_line import run as run_command
from refusals import refused
from safetensors import SafetensorError
from safetensors.torch import load_file

from temporal_vae import outputs
from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.cli import commands
from temporal_vae.errors import CheckpointError, ConfigError, TrainingError
from temporal_vae.training import checkpoint, loop
from temporal_vae.training.config.fields import TrainConfig, make_config
from temporal_vae.training.step import Learner, Objective

pytestmark = pytest.mark.usefixtures("scenes_drawn_once")

TINY: dict[str, Any] = {
    "model": {"new": {"block_out_channels": [64, 64], "latent_channels": 4}, "start": None},
    "steps": 6,
    "data": {"sources": [{"scenes": 2, "sides": [48]}], "workers": 0, "augmentation": {"reverse": 0.5}},
    "batches": [{"frames": 4, "lengths": [1, 2], "size": 16}],
    "optimizer": {"learning_rate": 1e-3, "warm_up": 2},
    "ema": 0.9,
    "checkpoints": {"every": 2},
}


def tiny(output: Path, **values: Any) -> TrainConfig:
    """The smallest run; values replace whole branches."""
    return make_config({**TINY, "output": str(output), **values})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "diffusion_pytorch_model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    assert loop.train(tiny(output), quiet=True).finished
    return output


def test_what_a_run_leaves(whole: Path) -> None:
    names = sorted(path.name for path in whole.iterdir())
    assert names == [".lock", "checkpoints", "config.yaml", "model", "report.json", "tensorboard"]
    assert [step for step, _ in checkpoint.checkpoints(whole)] == [4, 6]
    report = json.loads((whole / "report.json").read_text())
    assert report["steps"] == 6
    assert report["frames"] == 24
    assert report["bad_steps"] == 0
    assert any((whole / "tensorboard").iterdir())
    vae = AutoencoderKLTemporalDecoder.from_pretrained(whole / "model")
    assert vae.config.scaling_factor != 0.18215  # measured, as the network is new
    of_checkpoint = AutoencoderKLTemporalDecoder.from_pretrained(
        checkpoint.checkpoints(whole)[-1][1] / "model"
    )
    assert_same(vae.state_dict(), of_checkpoint.state_dict())


def test_another_run_ends_in_the_same_weights(whole: Path, tmp_path: Path) -> None:
    loop.train(tiny(tmp_path), quiet=True)
    assert_same(weights(whole), weights(tmp_path))


@pytest.mark.slow
def test_other_seeds_end_elsewhere(whole: Path, tmp_path: Path) -> None:
    loop.train(tiny(tmp_path, seed=1), quiet=True)
    name = "decoder.conv_in.weight"
    assert not torch.equal(weights(whole)[name], weights(tmp_path)[name])


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGHUP))],
)
def test_a_signal_ends_a_run_after_its_step(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    step = Learner.step

    def and_signal(self: Learner, drawn: Any) -> Any:
        if self.state.counters.step == 2:
            os.kill(os.getpid(), number)
        return step(self, drawn)

    before = signal.getsignal(number)
    monkeypatch.setattr(Learner, "step", and_signal)
    outcome = loop.train(tiny(tmp_path), quiet=True)
    assert (outcome.finished, outcome.signal) == (False, number)
    assert signal.getsignal(number) is before
    assert checkpoint.checkpoints(tmp_path)[-1][0] == 3
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    assert loop.train(tiny(tmp_path), quiet=True).finished
    assert_same(weights(whole), weights(tmp_path))


KINDS = {
    "accumulate, 3d": {
        "optimizer": {"accumulate": 2, "weight_decay": 0.1},
        "adversary": {"width": 8, "layers": 1, "first_step": 3},
    },
}
MORE_KINDS = {
    "accumulate, float16, 3d": {
        "optimizer": {"accumulate": 2, "weight_decay": 0.1},
        "precision": "float16",
        "adversary": {"width": 8, "layers": 1, "first_step": 3},
    },
    "accumulate": {"optimizer": {"accumulate": 2, "weight_decay": 0.1}, "ema": 0},
    "validation": {"validation": {"sources": [{"scenes": 1}], "size": 32, "every": 2, "frames": 2}},
    "2d": {"adversary": {"width": 8, "layers": 1, "kind": "2d", "adaptive": False}},
    "3d": {"adversary": {"width": 8, "layers": 1, "first_step": 3}},
    "bfloat16": {"precision": "bfloat16", "gradient_checkpointing": True},
    "float16": {"precision": "float16"},
    "temporal": {"train": "temporal", "model": {"start": "embedded"}, "sample_posterior": False},
    "losses": {"losses": {"charbonnier": 0, "l1": 1, "l2": 1, "ms_ssim": 0.1, "motion_penalty": "l1"}},
    "workers": {"data": {"sources": [{"scenes": 2}], "workers": 1}},
}


@pytest.mark.parametrize(
    "values",
    [
        *(pytest.param(values, id=name) for name, values in KINDS.items()),
        *(pytest.param(values, id=name, marks=pytest.mark.slow) for name, values in MORE_KINDS.items()),
    ],
)
def test_every_kind_of_run_resumes_to_the_same_bits(tmp_path: Path, values: dict[str, Any]) -> None:
    """The state of a run is complete: 2 + 2 steps are 4 steps, in weights and in everything a checkpoint holds."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    values = {**values, "optimizer": {"decay": 0, "warm_up": 2, **values.get("optimizer", {})}}
    loop.train(tiny(once, **values, steps=4), quiet=True)
    loop.train(tiny(twice, **values, steps=2), quiet=True)
    outcome = loop.train(tiny(twice, **values, steps=4), quiet=True)
    assert outcome.report["steps"] == 4
    assert_same(weights(once), weights(twice))
    states = [load_file(checkpoint.checkpoints(output)[-1][1] / checkpoint.STATE) for output in (once, twice)]
    assert_same(*states)
    begin = load_file(checkpoint.checkpoints(twice)[0][1] / checkpoint.STATE)
    changed = {name for name, value in begin.items() if not torch.equal(value, states[0][name])}
    assert any(name.startswith("vae.decoder") for name in changed)


def test_what_does_not_learn_stays(tmp_path: Path) -> None:
    embedded = AutoencoderKLTemporalDecoder.from_embedded().state_dict()
    loop.train(tiny(tmp_path, model={}, train="temporal", steps=2), quiet=True)
    trained = weights(tmp_path)
    changed = {name for name, value in embedded.items() if not torch.equal(value, trained[name])}
    assert changed
    assert all("temporal_res_block" in n or "time_mixer" in n or "time_conv_out" in n for n in changed)


def test_losses_fall(tmp_path: Path) -> None:
    seen: list[float] = []
    step = Learner.step

    def remember(self: Learner, drawn: Any) -> Any:
        values = step(self, drawn)
        seen.append(values["loss"])
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", remember)
        values = {
            "model": {"new": {"block_out_channels": [64], "latent_channels": 4}},
            "optimizer": {"learning_rate": 2e-3, "warm_up": 5},
            "checkpoints": {"every": 1000},
        }
        loop.train(tiny(tmp_path, steps=40, **values), quiet=True)
    assert sum(seen[-10:]) < 0.9 * sum(seen[:10])


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float) -> None:
    """Make the losses of some steps not finite."""
    learn = Objective.__call__
    count = iter(range(1000))

    def call(self: Any, *args: Any) -> Any:
        terms = learn(self, *args)
        return {name: term * value for name, term in terms.items()} if next(count) in steps else terms

    monkeypatch.setattr(Objective, "__call__", call)


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_losses_that_are_not_finite_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    poison(monkeypatch, {1, 3}, value)
    outcome = loop.train(tiny(tmp_path), quiet=True)
    assert outcome.report["bad_steps"] == 2
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_too_many_of_them_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(3, 100)), float("nan"))
    config = tiny(tmp_path, steps=50, checkpoints={"every": 2, "bad_steps": 4})
    refused(
        TrainingError,
        lambda: loop.train(config, quiet=True),
        "4 steps in a row",
        "go on from the last checkpoint",
    )
    last = checkpoint.checkpoints(tmp_path)[-1][1]
    tensors = load_file(last / checkpoint.STATE)
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())
    monkeypatch.undo()
    config = tiny(tmp_path, steps=8, checkpoints={"every": 2, "bad_steps": 4})
    assert loop.train(config, quiet=True).finished


def test_a_folder_of_another_run_is_refused(whole: Path) -> None:
    refused(
        ConfigError,
        lambda: loop.train(tiny(whole, seed=5), quiet=True),
        "another seed",
        "choose another output",
    )


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    loop.train(tiny(tmp_path, steps=2), quiet=True)
    (checkpoint.checkpoints(tmp_path)[-1][1] / checkpoint.STATE).write_bytes(b"damaged")
    refused(
        CheckpointError,
        lambda: loop.train(tiny(tmp_path), quiet=True),
        "cannot be resumed from",
        "remove that folder",
    )


def test_the_best_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([10.0, 30.0, 20.0, 20.0, 20.0])
    monkeypatch.setattr("temporal_vae.training.validation.mean_psnr", lambda _: next(figures))
    monkeypatch.setattr("temporal_vae.training.log.mean_psnr", lambda _: 0.0)
    validation = {"sources": [{"scenes": 1}], "size": 32, "every": 1, "frames": 2}
    loop.train(tiny(tmp_path, validation=validation, steps=4, checkpoints={"keep": 1}), quiet=True)
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [1, 4]
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir())[-1] == "step-00000004.png"


def test_no_cuda(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    refused(
        ConfigError,
        lambda: loop.train(tiny(tmp_path, device="cuda"), quiet=True),
        "device='cuda'",
        "use auto or cpu",
    )


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """A folder that another process trains in is refused, and nothing in it changes; a dead process holds nothing."""
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom temporal_vae.training.checkpoint import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    run = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused(
            TrainingError,
            lambda: loop.train(tiny(tmp_path, steps=1), quiet=True),
            f"process {holder.pid} on ",
            "trains there",
            "choose another output",
        )
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        holder.kill()
    assert loop.train(tiny(tmp_path, steps=1), quiet=True).finished


def test_gradients_of_the_adversary_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is learnt from such a step, by neither of the two."""
    criticise, count = Learner._criticise, iter(range(100))

    def spoil(self: Learner, *args: Any, **options: Any) -> Any:
        loss = criticise(self, *args, **options)
        discriminator = self.state.discriminator
        assert discriminator is not None
        if next(count) == 1:
            next(iter(discriminator.parameters())).grad[0] = torch.nan  # type: ignore[index]
        return loss

    monkeypatch.setattr(Learner, "_criticise", spoil)
    config = tiny(tmp_path, steps=3, adversary={"width": 8, "layers": 1})
    assert loop.train(config, quiet=True).report["bad_steps"] == 1
    tensors = load_file(checkpoint.checkpoints(tmp_path)[-1][1] / checkpoint.STATE)
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())


def test_a_loss_that_explodes_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {4, 5}, 1e4)
    figures = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr("temporal_vae.training.validation.mean_psnr", lambda _: next(figures))
    monkeypatch.setattr("temporal_vae.training.log.mean_psnr", lambda _: 0.0)
    validation = {"sources": [{"scenes": 1}], "size": 32, "every": 3, "frames": 2}
    outcome = loop.train(tiny(tmp_path, steps=6, validation=validation))
    said = capsys.readouterr().err
    assert "step 5: warning: the loss is " in said
    exploded, best = outcome.report["warnings"]
    assert "times the lowest; lower optimizer.learning_rate" in exploded
    where = checkpoint.checkpoints(tmp_path)[0][1] / "model"
    assert best == f"the weights ended at 20.0 dB; the best, 30.0 dB, are in {where}"
    assert f"warning: {best}" in said


def test_a_plain_run_warns_of_nothing(whole: Path) -> None:
    assert json.loads((whole / "report.json").read_text())["warnings"] == []


def test_values_that_are_let_change(tmp_path: Path) -> None:
    """The checkpoint carries its settings: they are compared although `config.yaml` is gone."""
    loop.train(tiny(tmp_path, steps=2), quiet=True)
    (tmp_path / "config.yaml").unlink()
    slower = {"optimizer": {"learning_rate": 1e-4, "warm_up": 2}}
    config = tiny(tmp_path, steps=4, **slower)
    refused(
        ConfigError,
        lambda: loop.train(config, quiet=True),
        "another optimizer.learning_rate",
        "--allow-change optimizer.learning_rate",
    )
    refused(ConfigError, lambda: loop.train(config, quiet=True, allow_change=["seed"]), "learning_rate")
    assert loop.train(config, quiet=True, allow_change=["optimizer.learning_rate"]).report["steps"] == 4
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["optimizer"]["learning_rate"] == 1e-4
    assert loop.train(tiny(tmp_path, steps=5, **slower), quiet=True).report["steps"] == 5


@pytest.mark.parametrize(
    "place",
    ["save_file", *(pytest.param(place, marks=pytest.mark.slow) for place in ("checkpoint", "model"))],
)
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Nothing is lost: once there is room, the same call goes on."""
    loop.train(tiny(tmp_path, steps=2), quiet=True)

    def full(*_: Any, **__: Any) -> None:
        if place == "save_file":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "save_file":
            patch.setattr(checkpoint, "save_file", full)
        elif place == "checkpoint":
            patch.setattr(checkpoint, "_flush", full)
        else:
            patch.setattr(loop._Run, "_save", lambda self: None)
            patch.setattr(AutoencoderKLTemporalDecoder, "save_pretrained", full)
        refused(
            TrainingError,
            lambda: loop.train(tiny(tmp_path, steps=4), quiet=True),
            "No space left",
            "MB are needed",
        )
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [2]
    assert not list(tmp_path.rglob("*.part*"))
    assert loop.train(tiny(tmp_path, steps=4), quiet=True).finished


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for folder in ("", "sheets", "checkpoints"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("model", "step-00000004.png"):
            left = outputs.temporary_name(tmp_path / folder / name)
            left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")).write_text("half")
    loop.train(tiny(tmp_path, steps=1), quiet=True)
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_process_says_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a launcher: the first one alone, and the launcher repeats it from a file."""
    config = write_config(tmp_path / "run", steps=1, device="cuda")
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert run_command("train", config) == 1
    assert ("device='cuda'" in capsys.readouterr().err) == (rank == "0")
    assert "device='cuda'" in json.loads((tmp_path / "error.json").read_text())["message"]["message"]


# Processes

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_config(output: Path, **values: Any) -> Path:
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**TINY, "output": str(output), **values}))
    return file


def command(config: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "temporal_vae", "train", str(config), *more]


def in_two_processes(config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Train under torchrun."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "temporal_vae", "train"]
    run = [sys.executable, *launch, str(config), *more]
    return subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def kill_at(run: list[str], output: Path, step: int, delay: float) -> None:
    """Start a run, and SIGKILL it `delay` seconds after its checkpoint of `step` is there."""
    process = subprocess.Popen(run, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not any(found >= step for found, _ in checkpoint.checkpoints(output)):
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    process.communicate()


def killed_and_resumed(tmp_path: Path, kills: list[tuple[int, float]]) -> None:
    values = {"steps": 60, "checkpoints": {"every": 1}}
    output = tmp_path / "killed"
    config = write_config(output, **values)
    for step, delay in kills:
        kill_at(command(config, "--quiet"), output, step, delay)
    killed_at = checkpoint.checkpoints(output)[-1][0]
    assert killed_at < 60
    subprocess.run(command(config, "--quiet"), env=ENVIRONMENT, check=True)
    whole = write_config(tmp_path / "whole", **values)
    subprocess.run(command(whole, "--quiet"), env=ENVIRONMENT, check=True)
    assert_same(weights(tmp_path / "whole"), weights(output))
    assert not list((output / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, [(3, 0.05)])


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    killed_and_resumed(
        tmp_path, [(step, delay / 100) for step, delay in zip(range(1, 41, 4), range(10), strict=True)]
    )


@pytest.mark.slow
def test_ctrl_c_of_the_command(tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = write_config(output, steps=100_000, checkpoints={"every": 100_000})
    process = subprocess.Popen(
        command(config), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list((output / "tensorboard").glob("*")):  # signals are minded from before that on
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert len(checkpoint.checkpoints(output)) == 1


@pytest.mark.slow
def test_a_launcher_says_it_last(tmp_path: Path) -> None:
    done = in_two_processes(write_config(tmp_path / "run", steps=0))
    assert done.returncode == 1
    assert done.stderr.count("temporal-vae: ") <= 1, done.stderr  # of the first process, of whatever failed
    assert "steps=0: must be at least 1" in done.stderr.splitlines()[-2], done.stderr


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Both work, agree, validate, and resume to the same bits."""
    validation = {"sources": [{"scenes": 3}], "size": 32, "every": 4, "frames": 2}
    values = {"steps": 4, "validation": validation, "device": "cpu", "adversary": {"width": 8, "layers": 1}}
    values["optimizer"] = {"decay": 0, "accumulate": 2}
    outputs = [tmp_path / "once", tmp_path / "twice"]
    configs = [write_config(output, **values) for output in outputs]
    for config, more in ((configs[0], []), (configs[1], ["steps=2"]), (configs[1], [])):
        done = in_two_processes(config, *more)
        assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((outputs[0] / "report.json").read_text())
    assert report["frames"] == 4 * 4 * 2 * 2  # steps, frames, batches, processes
    assert len(report["validation"]) == 3
    assert_same(weights(outputs[0]), weights(outputs[1]))


def test_the_command_reports(tmp_path: Path) -> None:
    config = write_config(tmp_path / "run", steps=1)
    result = CliRunner().invoke(commands, ["train", str(config), "--json", "seed=3"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["steps"] == 1
    assert report["config"]["seed"] == 3
