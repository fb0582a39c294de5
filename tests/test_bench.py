"""The benchmark: its arithmetic, its refusals, and a whole run on a model of two levels."""

import json
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from benchmarks import contestants, memory, protocol, runtimes
from benchmarks.__main__ import bench
from benchmarks.models import load_model, make_input
from benchmarks.process import Worker, WorkerFailed
from benchmarks.trials import Case, Trial, nominal_operations
from diffusers.models.attention_processor import AttnProcessor
from oracle import CONFIGS, config, noise, randomise
from torch.utils.flop_counter import FlopCounterMode

from temporal_vae import AutoencoderKLTemporalDecoder, cli
from temporal_vae.errors import InputError

CASE = Case(frames=2, height=16, width=24)
TASK = Trial(job="decode", case=CASE, dtype="float32", model="published", threads=1)
EXACT = noise(4, 5).numpy()
CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (32,),
    "layers_per_block": 1,
}


def run(*words: object) -> int:
    """Run `python -m benchmarks` and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmarks", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main(bench, "python -m benchmarks")
    return stop.value.code


# A whole run, in processes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    options = config(block_out_channels=(32, 32), layers_per_block=1)
    randomise(diffusers.AutoencoderKLTemporalDecoder(**options)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_whole_run(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contestants, "is_installed", lambda module: module != "openvino")
    names = [f"--contestant={name}" for name in ("temporal-vae", "diffusers", "openvino", "onnxruntime")]
    options = ["--job=decode", "--case=2x16x24", "--dtype=bfloat16", "--threads=1", "--rounds=2"]
    code = run("--model", model, *options, *names, "--output", tmp_path / "out.json")
    printed = capsys.readouterr().out
    assert code == 0
    assert "openvino: openvino is not installed; pip install 'temporal-vae[bench]'" in printed
    assert "onnxruntime: no bfloat16" in printed
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["machine"]["cores"]
    assert record["versions"]["torch"] == torch.__version__
    (race,) = record["races"]
    assert (race["job"], race["case"], race["dtype"]) == ("decode", "2x16x24", "bfloat16")
    ours, theirs, *others = race["contestants"]
    assert [row["name"] for row in others if row["reason"]] == ["openvino", "onnxruntime"]
    for row in (ours, theirs):
        assert len(row["seconds"]) == 2
        assert 0 < row["error"] <= race["error_limit"]
        assert row["peak_mib"] >= 0
        assert row["share_of_ceiling"]["conv"] > 0
    assert theirs["error"] == race["error_limit"] / protocol.BFLOAT16_FACTOR
    expected = np.median(theirs["seconds"]) / np.median(ours["seconds"])
    assert theirs["ours_is_faster_by"]["least"] <= theirs["ours_is_faster_by"]["median"]
    assert theirs["ours_is_faster_by"]["median"] == pytest.approx(expected, rel=0.9)


def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys):
    assert run("--model", tmp_path / "none", "--threads=1") == 1
    assert f"temporal-vae: --model {tmp_path / 'none'}: no such folder" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_an_error_before_the_work(tmp_path, capsys):
    assert run("--output", tmp_path / "none" / "out.json") == 1
    assert "cannot write there" in capsys.readouterr().err


# The rules of a race, with contestants that are told what to do


class Puppet:
    """Stands for a child process: answers with given results and seconds, or fails."""

    calls: tuple[str, ...] = ()
    results: dict[str, np.ndarray] = {}  # noqa: RUF012
    dies = ""

    def __init__(self, role, trial, folder, environment=None):
        self.role, self.rounds, self.resting_bytes = role, 0, 100

    def wait_for_imports(self):
        pass

    def load(self):
        return {"prepare_seconds": 0.5, "config": CONFIG}

    def ask(self, **request):
        if self.role == "ceiling":
            return {"conv": 10.0, "gemm": 20.0}
        if "save" in request:
            np.save(request["save"], self.results.get(self.role, EXACT))
        else:
            Puppet.calls += (self.role,)
            self.rounds += 1
            if self.dies == self.role and self.rounds == 2:
                raise WorkerFailed("killed by the system, which had no more memory")
        return {"seconds": float(len(self.role)), "peak_bytes": 100 + 2**20}

    def close(self):
        pass


@pytest.fixture
def puppets(monkeypatch):
    monkeypatch.setattr(protocol, "Worker", Puppet)
    monkeypatch.setattr(protocol, "_PAUSE", 0)
    monkeypatch.setattr(Puppet, "calls", ())


@pytest.fixture
def race(puppets, monkeypatch, tmp_path):
    """A function that runs a race of ours, diffusers and the tuned diffusers for three rounds, by name of row."""
    reference = protocol.Reference(config=CONFIG, result=EXACT, bfloat16_error=1e-2)

    def run(dtype="float32", **attributes):
        for name, value in attributes.items():
            monkeypatch.setattr(Puppet, name, value)
        trial = Trial(**{**vars(TASK), "dtype": dtype})
        names = ("temporal-vae", "diffusers", "diffusers-malloc")
        found = protocol._race(trial, names, 3, reference, tmp_path, lambda text: None)
        return {row.contestant: row for row in found.rows}

    return run


def test_everyone_runs_once_per_round_and_begins_in_turn(race):
    rows = race()
    assert {name: row.seconds for name, row in rows.items()} == {
        "temporal-vae": [12.0] * 3,
        "diffusers": [9.0] * 3,
        "diffusers-malloc": [16.0] * 3,
    }
    assert rows["diffusers"].peak_bytes == 2**20
    rounds = [Puppet.calls[i : i + 3] for i in (0, 3, 6)]
    assert [len(set(names)) for names in rounds] == [3, 3, 3]
    assert [names[0] for names in rounds] == list(rows)


@pytest.mark.parametrize(
    ("dtype", "wrong", "reason"),
    [
        ("float32", EXACT * (1 + 1e-4), "wrong numbers: error 1.0e-04, accepted is 5.0e-05"),
        ("float32", EXACT * np.nan, "wrong numbers: error nan"),
        ("float32", EXACT[:2], "wrong shape"),
        ("bfloat16", EXACT * (1 + 3e-2), "wrong numbers: error 3.0e-02, accepted is 2.0e-02"),
    ],
)
def test_wrong_results_are_not_timed(race, dtype, wrong, reason):
    rows = race(dtype, results={"diffusers": wrong})
    assert rows["diffusers"].reason.startswith(reason)
    assert rows["diffusers"].seconds == []
    assert "diffusers" not in Puppet.calls
    assert len(rows["temporal-vae"].seconds) == 3


def test_bfloat16_has_room_for_its_rounding(race):
    assert not race("bfloat16", results={"temporal-vae": EXACT * (1 + 1.9e-2)})["temporal-vae"].reason


def test_who_dies_leaves_a_reason_and_the_others_go_on(race):
    rows = race(dies="diffusers")
    assert rows["diffusers"].reason == "killed by the system, which had no more memory"
    assert Puppet.calls.count("diffusers") == 2
    assert len(rows["temporal-vae"].seconds) == 3


def test_the_command_fails_if_ours_is_wrong(puppets, monkeypatch, capsys):
    monkeypatch.setattr(Puppet, "results", {"temporal-vae": 2 * EXACT})
    names = ["--contestant=temporal-vae", "--contestant=diffusers", "--contestant=onnxruntime"]
    assert run("--job=train", "--case=2x16x16", "--json", *names) == 1
    out, err = capsys.readouterr()
    last = "temporal-vae: temporal-vae has no times for train 2x16x16 float32: wrong numbers: error 1.0e+00"
    assert err.splitlines()[-1].startswith(last)
    (found,) = json.loads(out)["races"]
    ours, theirs, other = found["contestants"]
    assert "seconds" not in ours
    assert theirs["median_seconds"] == 9.0
    assert theirs["ours_is_faster_by"] is None
    assert other["reason"] == "does not train"


def test_table(puppets, capsys):
    run("--job=decode", "--case=2x16x16", "--contestant=temporal-vae", "--contestant=diffusers", "--rounds=2")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows]
    assert cells[0][:4] == ["temporal-vae", "12.000", "0%", ""]
    assert cells[1][:4] == ["diffusers", "9.000", "0%", "0.75x"]
    assert cells[1][4] == "0.22"
    assert cells[1][7:] == ["1", "0.0e+00", "9.5"]


# Parts


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_that_torch_counts(name):
    model = diffusers.AutoencoderKLTemporalDecoder(**config(**CONFIGS[name])).eval()
    model.set_attn_processor(AttnProcessor())  # torch does not count its fused attention on CPUs
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    case = Case(frames=3, height=2 * factor, width=3 * factor)
    inputs = {
        "decode": lambda: model.decode(noise(3, model.config.latent_channels, 2, 3), num_frames=3),
        "encode": lambda: model.encode(noise(3, model.config.in_channels, case.height, case.width)),
    }
    for job, call in inputs.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        assert nominal_operations(job, case, model.config) == counter.get_total_flops()
    assert nominal_operations("train", case, model.config) is None


@pytest.mark.parametrize("text", ["8x256", "8x256x256x3", "0x8x8", "-1x8x8", "axbxc", ""])
def test_cases_that_are_none(text):
    with pytest.raises(InputError, match="three whole numbers such as 8x256x256"):
        Case.parse(text)
    assert run("--case", text) == 2


def test_a_case_survives_its_text_and_a_task_its_json():
    assert Case.parse(str(CASE)) == CASE
    assert Trial.from_dict(json.loads(json.dumps(TASK.to_dict()))) == TASK


def test_a_size_that_the_model_cannot_halve():
    with pytest.raises(InputError, match="multiples of 8"):
        protocol._check_size(
            Trial(**{**vars(TASK), "case": Case.parse("1x12x16")}), {"block_out_channels": (32,) * 4}
        )


def test_who_takes_part(monkeypatch):
    monkeypatch.setattr(contestants, "find_library", lambda name: None)
    assert contestants.default_names(TASK) == [
        name for name, contestant in contestants.CONTESTANTS.items() if not contestant.preload
    ]
    training = Trial(**{**vars(TASK), "job": "train"})
    assert contestants.default_names(training) == ["temporal-vae", "diffusers"]
    jemalloc = contestants.CONTESTANTS["diffusers-jemalloc"]
    assert jemalloc.obstacle(TASK).startswith("libjemalloc is not on this machine")
    monkeypatch.setattr(contestants, "find_library", lambda name: f"lib{name}.so.2")
    assert not jemalloc.obstacle(TASK)
    assert jemalloc.process_environment()["LD_PRELOAD"] == "libjemalloc.so.2"


def test_an_error_in_a_process_is_its_reason(tmp_path):
    worker = Worker("ceiling", Trial(**{**vars(TASK), "threads": -1}), tmp_path)
    worker.wait_for_imports()
    with pytest.raises(WorkerFailed, match=r"^RuntimeError: .*positive"):
        worker.load()
    worker.close()


def test_a_process_that_ends_leaves_its_last_words(tmp_path):
    (tmp_path / "torch.py").write_text("import sys; sys.exit('no such instruction')")
    worker = Worker("ceiling", TASK, tmp_path, {"PYTHONPATH": str(tmp_path)})
    with pytest.raises(WorkerFailed, match=r"^ended with code 1: no such instruction$"):
        worker.wait_for_imports()
    worker.close()


@pytest.mark.parametrize("job", ["train", "train-checkpointed", "train-temporal"])
def test_a_training_step_leaves_no_trace(model, job):
    trial = Trial(**{**vars(TASK), "job": job, "model": str(model)})
    vae = load_model(AutoencoderKLTemporalDecoder, trial, "float32")
    frames = make_input(trial, vae.config, "float32")
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    run = runtimes.eager(vae, frames, trial)
    result = run()
    assert result.shape == frames.shape == (2, 3, 16, 24)
    assert torch.equal(result, run())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert vae.quant_conv.weight.requires_grad == (job != "train-temporal")
    assert vae.is_gradient_checkpointing == (job == "train-checkpointed")
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_only_ours_is_limited():
    limits = []
    trial = Trial(**{**vars(TASK), "memory_limit": 2**30})
    for kind in (AutoencoderKLTemporalDecoder, diffusers.AutoencoderKLTemporalDecoder):
        vae = kind()
        vae.enable_tiling = lambda memory_limit: limits.append(memory_limit)
        runtimes.eager(vae, None, trial)
    assert limits == [2**30]


@pytest.mark.parametrize(("text", "expected"), [("2GiB", 2**31), ("1.5 MiB", 3 * 2**19), ("lots", None)])
def test_amounts_of_memory(text, expected, monkeypatch):
    trials = []
    monkeypatch.setattr(protocol, "run_races", lambda given, **options: trials.extend(given) or [])
    assert run("--memory-limit", text) == (2 if expected is None else 0)
    assert {trial.memory_limit for trial in trials} == (set() if expected is None else {expected})


@pytest.mark.parametrize("kernel_keeps_it", [True, False])
def test_peak_of_another_process(kernel_keeps_it, monkeypatch):
    if not kernel_keeps_it:
        monkeypatch.setattr(memory, "_forget_peak", lambda pid: False)
    code = """
for size in (90, 50, 0):
    input()
    block = bytearray(b'x') * (size << 20)
    print(flush=True)
    input()
    del block
    print(flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def go_on():
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()

        resting, peaks = memory.resident_bytes(process.pid), []
        for _ in range(3):
            with memory.watch_peak(process.pid) as peak:
                go_on()  # it holds a block, and the watch ends before it lets go: nothing hangs on when is sampled
            peaks.append((peak[0] - resting) / 2**20)
            go_on()
    assert peaks == pytest.approx([90, 50, 0], abs=12)


def test_onnxruntime_has_no_bfloat16_convolution():
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    kinds = {"X": [1, 1, 4, 4], "W": [1, 1, 3, 3], "Y": [1, 1, 2, 2]}
    x, w, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BFLOAT16, shape)
        for name, shape in kinds.items()
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Conv", ["X", "W"], ["Y"])], "g", [x, w], [y])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10
    ).SerializeToString()
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        ort.InferenceSession(model, providers=["CPUExecutionProvider"])
