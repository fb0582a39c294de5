"""The configuration of a training run: what files and NAME=VALUE may say, and how they are told when they are wrong."""

import ast
import inspect
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass, replace
from importlib.resources import files

import pytest
import yaml
from refusals import refused

from temporal_vae import cli
from temporal_vae.errors import ConfigError
from temporal_vae.training.config import fields as module
from temporal_vae.training.config.fields import (
    FREE,
    Batch,
    TrainConfig,
    batches_of,
    differences,
    make_config,
    read_config,
    to_yaml,
)

RECIPES = files("temporal_vae.training") / "recipes"


@pytest.fixture
def written(tmp_path):
    """A function that writes a text as a file and returns its path."""

    def write(text, encoding="utf-8"):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding=encoding)
        return path

    return write


def values_of(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


# Files


def test_defaults_survive_a_file(written):
    assert read_config(written(to_yaml(TrainConfig()))) == TrainConfig()
    assert read_config(written("")) == TrainConfig()
    assert read_config(written("# nothing but a comment\n")) == TrainConfig()


def test_all_values_survive_a_file(written):
    text = """
        output: "r\u00fcns/2024: \u52d5\u753b"
        model: {start: null, new: {block_out_channels: [96, 96]}, linear_start: {learning_rate: 1e-5}}
        train: "decoder\\\\.(mid|up)_block"
        data:
          sources: [{path: "a b/*.mp4", sides: [64, 128], exclude: ["*x*"]}, {scenes: 3, weight: 0.25}]
          rates: [23.976, 12]
        batches: [{frames: 6, lengths: [3], size: [32, 48], last_step: 10}, {area: 1024, first_step: 10}]
        adversary: {kind: 2d, first_step: 7}
        optimizer: {learning_rate: 1.5e-4, betas: [0.5, 0.999]}
    """
    config = read_config(written(text))
    assert config.output == "r\u00fcns/2024: \u52d5\u753b"
    assert config.batches[0].size == (32, 48)
    assert config.data.sources[1].weight == 0.25
    assert config.model.linear_start.learning_rate == 1e-5
    assert config.adversary.kind == "2d"
    assert read_config(written(to_yaml(config))) == config


def test_a_byte_order_mark_is_no_part_of_a_name(written):
    assert read_config(written("steps: 7", encoding="utf-8-sig")).steps == 7


@pytest.mark.parametrize(
    "recipe", [file for file in RECIPES.iterdir() if file.name.endswith(".yaml")], ids=lambda file: file.name
)
def test_recipes_are_valid(recipe):
    config = read_config(str(recipe))
    assert make_config(yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("- 1\n- 2", ["list", "names with values", "steps: 1000"]),
        ("just words", ["str", "names with values"]),
        ("a: b: c", ["is no YAML", "mapping values are not allowed here", "line 1"]),
        ("steps: 1\n\tx: 2", ["is no YAML", "line 2"]),
        ("steps: [1", ["is no YAML"]),
        ("output: *nowhere", ["is no YAML", "undefined alias 'nowhere'", "line 1"]),
        ("!!python/object/apply:os.system [ls]", ["is no YAML", "line 1"]),
        ("steps: \x07", ["is no YAML", "special characters"]),
    ],
)
def test_files_that_hold_something_else(written, text, parts):
    path = written(text)
    refused(ConfigError, lambda: read_config(path), path, *parts)


def test_files_that_cannot_be_read(tmp_path):
    missing = tmp_path / "missing.yaml"
    refused(ConfigError, lambda: read_config(missing), missing, "No such file", "name a YAML file")
    refused(ConfigError, lambda: read_config(tmp_path), tmp_path, "directory")
    picture = tmp_path / "picture.yaml"
    picture.write_bytes(bytes(range(128, 256)))
    refused(ConfigError, lambda: read_config(picture), picture, "not text")


# Values


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        # unknown names
        ("optimizer: {learning_rat: 1}", ["optimizer.learning_rat:", "did you mean learning_rate?"]),
        ("batches: [{frame: 8}]", ["batches.0.frame:", "unknown", "did you mean frames?", "--defaults"]),
        ("lerning: 1", ["lerning: unknown name; `temporal-vae train --defaults`"]),
        ("learning_rate: 1", ["learning_rate:", "adversary.learning_rate or optimizer.learning_rate?"]),
        ("optimizer: {ema: 0.9}", ["optimizer.ema:", "unknown", "did you mean ema?"]),
        ("data: {path: x}", ["data.path:", "did you mean data.sources.path or validation.sources.path?"]),
        ("x: 1\ny: 2\nz: 3", ["x: unknown name", "(and 2 more)"]),
        ("1: 2", ["1: is no name"]),
        ("optimizer: {1: 2}", ["optimizer.1: is no name", "names are text"]),
        # wrong types
        ("optimizer: {learning_rate: fast}", ["optimizer.learning_rate='fast': must be a number"]),
        ("optimizer: {learning_rate: [1]}", ["optimizer.learning_rate: must be a number"]),
        ("losses: {lpips: yes}", ["losses.lpips=True: must be a number"]),
        ("losses: {l1: null}", ["losses.l1: is empty; must be a number"]),
        ("steps: 1.5", ["steps=1.5: must be a whole number"]),
        ("steps: many", ["steps='many': must be a whole number"]),
        ("steps: true", ["steps=True: must be a number"]),
        ("steps: 1e999", ["steps=inf: must be a finite number"]),
        ("steps: 2020-01-01", ["steps: must be a whole number"]),
        ("optimizer: 3", ["optimizer=3: must be a group, {name: value}"]),
        ("optimizer:", ["optimizer: is empty; must be a group"]),
        ("adversary: true", ["adversary=True: must be a group"]),
        ("data: {sources: [a.mp4]}", ["data.sources.0='a.mp4': must be a group, {name: value}"]),
        ("data: {sources: a.mp4}", ["data.sources='a.mp4': must be a list in brackets"]),
        ("data: {sources: {path: a}}", ["data.sources: must be a list"]),
        ("data: {sources: [{path: 3}]}", ["data.sources.0.path=3: must be text; put it in quotes"]),
        ("data: {sources: [{path: a, exclude: x}]}", ["data.sources.0.exclude='x': must be a list"]),
        ("data: {rates: 12}", ["data.rates=12: must be a list"]),
        ("data: {cache: lots}", ["data.cache='lots': must be an amount of memory", "1GiB"]),
        ("data: {cache: 0}", ["data.cache=0: must be an amount of memory"]),
        ("batches: {frames: 8}", ["batches: must be a list"]),
        ("batches: [{size: big}]", ["batches.0.size='big'", "whole number", "[height, width]"]),
        ("batches: [{size: 0}]", ["batches.0.size=0", "at least 1"]),
        ("batches: [{size: [64]}]", ["batches.0.size: must be", "[height, width]"]),
        ("batches: [{size: [64, 64, 64]}]", ["batches.0.size: must be", "[height, width]"]),
        ("batches: [{lengths: 2}]", ["batches.0.lengths=2: must be a list"]),
        ("sample_posterior: maybe", ["sample_posterior='maybe': must be true or false"]),
        ("optimizer: {betas: [0.9]}", ["optimizer.betas.1: is missing"]),
        ("optimizer: {betas: [0.9, 0.9, 0.9]}", ["optimizer.betas", "at most 2 entries"]),
        ("output: 2024", ["output=2024: must be text; put it in quotes"]),
        ("output:", ["output: is empty"]),
        # out of range
        ("optimizer: {learning_rate: -1}", ["optimizer.learning_rate=-1: must be above 0"]),
        ("optimizer: {learning_rate: .nan}", ["optimizer.learning_rate=nan"]),
        ("losses: {l1: .inf}", ["losses.l1=inf: must be a finite number"]),
        ("losses: {l1: -0.5}", ["losses.l1=-0.5: must be at least 0"]),
        ("data: {augmentation: {flip: 1.5}}", ["data.augmentation.flip=1.5: must be at most 1"]),
        ("data: {rates: [0]}", ["data.rates.0=0: must be above 0"]),
        ("data: {workers: -1}", ["data.workers=-1: must be at least 0"]),
        ("ema: 1", ["ema=1: must be below 1"]),
        ("seed: -1", ["seed=-1: must be at least 0"]),
        ("checkpoints: {every: 0}", ["checkpoints.every=0: must be at least 1"]),
        ("batches: []", ["batches: must have at least one entry"]),
        ("batches: [{lengths: []}]", ["batches.0.lengths: must have at least one entry"]),
        ("batches: [{lengths: [0]}]", ["batches.0.lengths.0=0: must be at least 1"]),
        ("output: ''", ["output='': must not be empty"]),
        ("precision: fp16", ["precision='fp16': must be 'float32', 'bfloat16' or 'float16'"]),
        ("device: cuda:1", ["device='cuda:1': must be 'auto', 'cpu' or 'cuda'"]),
    ],
)
def test_values_that_cannot_be(written, text, parts):
    path = written(text)
    refused(ConfigError, lambda: read_config(path), f"{path}: {parts[0]}", *parts[1:])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {start: a, new: {}}", ["model.start='a' and model.new exclude each other"]),
        ("model: {start: null}", ["model: give start", "or new"]),
        ("model: {linear_start: {}}", ["model.linear_start", "model.new too"]),
        (
            "model: {new: {block_out_channels: [64, 64]}, linear_start: {}}",
            ["model.linear_start", "at least 96"],
        ),
        (
            "model: {new: {block_out_channels: [96, 128]}, linear_start: {}}",
            ["model.linear_start", "same width on every level"],
        ),
        (
            "model: {new: {latent_channels: 33}, linear_start: {}}",
            ["model.linear_start", "at most 32 latent channels"],
        ),
        ("model: {new: {}, linear_start: {size: 50}}", ["model.linear_start.size=50", "multiple of 4"]),
        ("data: {sources: [{scenes: 1}, {path: a, scenes: 3}]}", ["data.sources.1: give either a path or"]),
        ("validation: {sources: [{weight: 2}]}", ["validation.sources.0: give either a path or"]),
        (
            "batches: [{}, {frames: 8, lengths: [2, 3]}]",
            ["batches.1: clips of 3", "batches of 8", "divisors"],
        ),
        ("batches: [{first_step: 5}]", ["batches: there is none for step 0", "no gap"]),
        ("batches: [{last_step: 5}, {first_step: 6}]", ["batches: there is none for step 5", "no gap"]),
        ("batches: [{}, {first_step: 5, last_step: 5}]", ["batches.1: last_step=5", "first_step=5"]),
        ("train: '('", ["train='(': neither full, decoder, temporal nor a regular expression"]),
        ("losses: {charbonnier: 0, motion: 0, kl: 1}", ["losses: nothing compares"]),
    ],
)
def test_values_that_contradict_each_other(written, text, parts):
    path = written(text)
    refused(ConfigError, lambda: read_config(path), f"{path}: {parts[0]}", *parts[1:])


@pytest.mark.parametrize(
    "text", ["steps: [", "steps: {a: 1}", "batches: [{size: {}}]", "model: [1]", "a: {b: {}}"]
)
def test_messages_are_free_of_the_checkers_words(written, text):
    with pytest.raises(ConfigError) as caught:
        read_config(written(text))
    for word in ("pydantic", "input", "Input", "tuple", "dict", "instance", "constrained", "unicode string"):
        assert word not in str(caught.value)


# NAME=VALUE


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optimizer.learning_rate=1e-4", 1e-4),  # YAML 1.1 reads it as text
        ("optimizer.learning_rate=+2E-4", 2e-4),
        ("steps=1e4", 10_000),
        ("steps=1_000", 1000),
        ("optimizer.betas=[0.5, 0.75]", (0.5, 0.75)),
        ("optimizer.decay=null", None),
        ("optimizer.decay=", None),
        ("adversary.weight=0.5", 0.5),  # makes the adversary
        ("model.new.latent_channels=4", 4),
        ("train=^decoder.*[0-9]", "^decoder.*[0-9]"),
        ("train='[*]'", "[*]"),
        ("output=runs/a=b", "runs/a=b"),
        ("output='2024'", "2024"),
        ("data.cache=500", "500"),
        ("sample_posterior=no", False),
        ("data.augmentation.flip=1", 1.0),
    ],
)
def test_single_values(written, text, value):
    name = text.partition("=")[0]
    config = read_config(written("model: {subfolder: vae}"), [text])
    assert values_of(config, name) == value
    assert config.model.subfolder == "vae"


def test_single_values_of_lists(written):
    path = written("batches: [{size: 32}, {size: 48}]")
    config = read_config(path, ["batches.1.size=64", "batches.0.weight=2", "optimizer.accumulate=3"])
    assert [(batch.size, batch.weight) for batch in config.batches] == [(32, 2.0), (64, 1.0)]
    assert config.optimizer.accumulate == 3
    assert len(read_config(path, ["batches=[{frames: 2, lengths: [1]}]"]).batches) == 1


def test_the_last_of_single_values_counts(written):
    assert read_config(written("steps: 1"), ["steps=2", "steps=3"]).steps == 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("steps", ["'steps'", "NAME=VALUE", "optimizer.learning_rate=1e-4"]),
        ("=3", ["'=3'", "NAME=VALUE"]),
        ("optimizer..x=3", ["'optimizer..x=3'", "NAME=VALUE"]),
        ("batches.7.size=3", ["'batches.7.size=3'", "there is no 7 to change"]),
        ("batches.size=3", ["'batches.size=3'", "there is no size to change"]),
        ("seed.x=3", ["'seed.x=3'", "there is no x to change"]),
        ("output=[", ["'output=['", "'[' is no YAML", "quotes"]),
        ("output=@x", ["'output=@x'", "no YAML", "quotes"]),
        ("output=a: b", ["output: must be text"]),
        ("optimizer.lr=1", ["optimizer.lr: unknown name"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate='fast': must be a number"]),
    ],
)
def test_single_values_that_cannot_be(written, text, parts):
    path = written("batches: [{}]\nseed: 1")
    refused(ConfigError, lambda: read_config(path, [text]), *parts)


# What a run may change, and what it uses


def test_differences():
    one = TrainConfig()
    assert differences(one, one) == []
    assert differences(one, replace(one, steps=7, output="x", device="cpu")) == []
    other = make_config({"ema": 0.5, "optimizer": {"accumulate": 2}, "batches": [{"size": 32}]})
    assert differences(one, other) == ["batches", "optimizer.accumulate", "ema"]
    assert differences(one, make_config({"adversary": {}})) != []
    assert differences(make_config({"adversary": {}}), one) != []


@pytest.mark.parametrize("name", FREE)
def test_free_names_are_names(name):
    values_of(TrainConfig(), name)


def test_batches_of_a_step():
    early, late = Batch(last_step=5), Batch(first_step=3, size=32)
    config = TrainConfig(batches=(early, late), steps=10)
    assert [batches_of(config, step) for step in (0, 2, 3, 4, 5, 9)] == [
        [early],
        [early],
        [early, late],
        [early, late],
        [late],
        [late],
    ]


def test_a_gap_after_the_last_step_is_none():
    assert TrainConfig(batches=(Batch(last_step=5),), steps=5).steps == 5


def test_every_name_is_explained():
    """By a comment on its line or the line above, or a string below it."""
    source = inspect.getsource(module).splitlines()
    groups = [node for node in ast.parse("\n".join(source)).body if isinstance(node, ast.ClassDef)]
    assert {group.name for group in groups} == {
        name for name, kind in vars(module).items() if is_dataclass(kind) and isinstance(kind, type)
    }
    for group in groups:
        assert ast.get_docstring(group), group.name
        for node, following in zip(group.body, [*group.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                string = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                beside = "  # " in source[node.end_lineno - 1]
                above = source[node.lineno - 2].strip().startswith("# ")
                assert string or beside or above, f"{group.name}.{node.target.id}"


# The command


def run(*words):
    """Run `temporal-vae train` in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["temporal-vae", "train", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return stop.value.code


def test_the_command_prints_the_defaults(capsys):
    assert run("--defaults") == 0
    out = capsys.readouterr().out
    assert make_config(yaml.safe_load(out)) == TrainConfig()
    for item in fields(TrainConfig):
        assert f"{item.name}:" in out


def test_the_command_shows_what_it_would_use(written, tmp_path, capsys):
    path = written("steps: 5")
    assert run(path, "optimizer.learning_rate=1e-3", "seed=3", "--show") == 0
    config = make_config(yaml.safe_load(capsys.readouterr().out))
    assert asdict(config) == asdict(replace(read_config(path, ["optimizer.learning_rate=1e-3"]), seed=3))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", ["2024", "null", "a: b", "@x", "r\u00fcns \U0001f3ac", 'with "quotes"'])
def test_the_command_takes_any_folder(written, capsys, folder):
    assert run(written(""), "--output", folder, "--show") == 0
    assert yaml.safe_load(capsys.readouterr().out)["output"] == folder


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        ((), 2, ["CONFIG", "--defaults"]),
        (("--wrong",), 2, ["--wrong"]),
        (("FOLDER",), 2, ["directory"]),
        (("nowhere.yaml",), 1, ["temporal-vae: nowhere.yaml: cannot be read", "name a YAML file"]),
        (("FILE", "steps=many"), 1, ["steps='many': must be a whole number"]),
        (("FILE", "steps"), 1, ["'steps': write NAME=VALUE"]),
    ],
)
def test_the_command_refuses(written, capsys, words, code, parts):
    path = written("steps: 5")
    names = {"FILE": path, "FOLDER": path.parent}
    assert run(*(names.get(word, word) for word in words)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in parts:
        assert part in captured.err
    if code == 1:
        assert captured.err.count("\n") == 1


def test_questions_about_the_configuration_need_no_torch():
    code = "import sys; from temporal_vae.training.config.fields import TrainConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
