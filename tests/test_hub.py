"""Models to the hub: real requests of the hub's client, answered by a hub of this machine."""

import json
import re

import pytest
import torch
import yaml
from command_line import run
from fake_hub import OWNER, aim_client, running_hub
from oracle import SVD, TINY, Theirs, config, pair
from refusals import refused
from test_checkpoints import assert_same_weights

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae.checkpoints.card import TAGS, default_card
from temporal_vae.checkpoints.loading import EMBEDDED
from temporal_vae.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
CARD = "---\nlicense: mit\nlibrary_name: diffusers\n---\n\n# Mine\n"


@pytest.fixture(scope="module")
def model():
    return pair(**TINY)[0]


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


def files(repository):
    return set(repository.files)


def card(repository):
    return repository.files["README.md"].decode()


# The card


@pytest.mark.parametrize("license", [None, "apache-2.0"])
def test_default_card(model, license):
    text = default_card(model, "somebody/model", license=license)
    _, matter, page = text.split("---\n", 2)
    said = {"license": license} if license else {}
    assert yaml.safe_load(matter) == {"library_name": "diffusers", "tags": list(TAGS), **said}
    count = sum(p.numel() for p in model.parameters())
    for part in (f"| parameters | {count:,} |", "32 x 64", "one for 2x2 pixels", "0.18215", "# model\n"):
        assert part in page
    assert "{" not in page


def test_code_of_the_default_card_runs(model, folder):
    code = re.search(r"```python\n(.*?)```", default_card(model, str(folder)), re.S).group(1)
    names = {"frames": torch.zeros(3, 3, 8, 8)}
    exec(compile(code, "card", "exec"), names)
    assert names["frames"].shape == (3, 3, 8, 8)


def test_card_of_the_published_configuration():
    with torch.device("meta"):
        model = Ours(**config(**SVD))
    assert "one for 8x8 pixels" in default_card(model, "a/b")


# From Python


def test_push_to_hub(model, hub, tmp_path):
    commit = model.push_to_hub("model", commit_message="First", private=True)
    repository = hub.repositories[f"{OWNER}/model"]
    assert commit == f"{hub.url}/{OWNER}/model/commit/{1:040x}"
    assert repository.private
    assert [made["summary"] for made in repository.commits] == ["First"]
    assert files(repository) == {"config.json", WEIGHTS, "README.md"}
    assert card(repository) == default_card(model, f"{OWNER}/model")
    for name, content in repository.files.items():
        (tmp_path / name).write_bytes(content)
    for kind in (Ours, Theirs):
        assert_same_weights(kind.from_pretrained(tmp_path), model)


def test_the_repositorys_card_stays(model, hub):
    model.push_to_hub("group/model", card=CARD)
    model.push_to_hub("group/model")
    repository = hub.repositories["group/model"]
    assert card(repository) == CARD
    assert len(repository.commits) == 2


def test_subfolder_variant_and_pull_request(model, hub):
    model.push_to_hub("group/pipeline", subfolder="vae", variant="fp16", create_pr=True)
    repository = hub.repositories["group/pipeline"]
    assert files(repository) == {"vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"}
    assert repository.commits[0]["query"] == "create_pr=1"


@pytest.mark.parametrize("named", [True, False])
def test_save_pretrained_pushes_the_card_that_lies_there(model, hub, folder, named):
    (folder / "README.md").write_text(CARD)
    (folder / "notes.txt").write_text("stays here")
    name = {"repo_id": "group/other"} if named else {}
    model.save_pretrained(folder, push_to_hub=True, max_shard_size="300KB", commit_message="Again", **name)
    repository = hub.repositories["group/other" if named else f"{OWNER}/model"]
    assert card(repository) == (folder / "README.md").read_text() == CARD
    assert repository.commits[0]["summary"] == "Again"
    shards = set(json.loads(repository.files[f"{WEIGHTS}.index.json"])["weight_map"].values())
    assert len(shards) > 1
    assert shards <= files(repository)
    assert "notes.txt" not in repository.files


def test_other_processes_do_not_push(model, hub, folder):
    model.save_pretrained(folder, is_main_process=False, push_to_hub=True)
    assert not hub.repositories


# From the command line


def test_command(folder, hub, capsys, tmp_path):
    given = tmp_path / "card.md"
    given.write_text(CARD)
    assert run("push", folder, "group/model", "--private", "--card", given, "--message", "New", "--json") == 0
    repository = hub.repositories["group/model"]
    said = json.loads(capsys.readouterr().out)
    assert said["repo_id"] == "group/model"
    assert said["url"].endswith(said["commit"])
    assert repository.private
    assert repository.commits[0]["summary"] == "New"
    assert card(repository) == CARD
    assert repository.files[WEIGHTS] == (folder / WEIGHTS).read_bytes()


def test_command_takes_the_embedded_model(hub, capsys):
    assert run("push", "embedded", "model") == 0
    repository = hub.repositories[f"{OWNER}/model"]
    for name in ("README.md", "config.json", WEIGHTS):
        assert repository.files[name] == (EMBEDDED / name).read_bytes()
    assert capsys.readouterr().out == f"{hub.url}/{OWNER}/model/commit/{1:040x}\n"


# Refusals


def test_a_public_repository_is_not_taken_for_a_private_one(model, hub):
    model.push_to_hub("group/model")
    refused(
        CheckpointError,
        lambda: model.push_to_hub("group/model", private=True),
        "group/model: exists and is public",
    )
    assert len(hub.repositories["group/model"].commits) == 1


@pytest.mark.parametrize("name", ["a/b/c", "what?", "--", ""])
def test_name_that_is_none(model, hub, name):
    refused(CheckpointError, lambda: model.push_to_hub(name), f"{name}: cannot be pushed", "check name")
    assert not hub.repositories


def test_no_token(model, hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(CheckpointError, lambda: model.push_to_hub("a/b"), "a/b: no token", "hf auth login", "HF_TOKEN")


def test_wrong_token(model, hub):
    refused(
        CheckpointError,
        lambda: model.push_to_hub("a/b", token="hf_other"),
        "a/b: cannot be pushed",
        "401",
        "Invalid username or password",
        "check name, token",
    )


def test_no_connection(model, monkeypatch):
    aim_client(monkeypatch, "http://127.0.0.1:9")
    refused(CheckpointError, lambda: model.push_to_hub("a/b"), "a/b: cannot be pushed", "connection")


def test_offline(model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    refused(CheckpointError, lambda: model.push_to_hub("a/b"), "a/b", "HF_HUB_OFFLINE", "connection")


def test_card_that_the_hub_refuses(model, hub):
    refused(
        CheckpointError,
        lambda: model.push_to_hub("a/b", card="---\nlicense: [\n---\n"),
        "a/b",
        "README.md",
        "bad YAML",
    )
    assert not hub.repositories["a/b"].commits


def test_command_refuses_what_is_no_folder(hub, capsys):
    assert run("push", "somebody/model", "group/model") == 1
    assert capsys.readouterr().err.startswith("temporal-vae: somebody/model: no such folder")
    assert not hub.repositories
