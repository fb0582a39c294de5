"""Shell completion, as `docs/install.md` shows it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT, blocks

ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def shell(name: str, *words: str, **variables: str) -> str:
    """What a command prints that must succeed."""
    if shutil.which(name, path=ENVIRONMENT["PATH"]) is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [name, *words], env={**ENVIRONMENT, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def completed(line: str, folder: Path) -> set[str]:
    """What bash offers behind a line, once the script of the page was read."""
    (block,) = [block for block in blocks(ROOT / "docs" / "install.md") if block.info == "bash"]
    words = " ".join(f"'{word}'" for word in line.split(" "))
    return set(
        shell(
            "bash", "-euc", f"cd {folder}; {block.code}\nCOMP_WORDS=({words})\nCOMP_CWORD={line.count(' ')}\n"
            "_temporal_vae_completion temporal-vae; printf '%s\\n' \"${COMPREPLY[@]}\"",
        ).split()
    )  # fmt: skip


def test_bash_completes(tmp_path):
    assert completed("temporal-vae re", tmp_path) == {"reconstruct"}
    assert completed("temporal-vae decode --mem", tmp_path) == {"--memory-limit"}
    assert completed("temporal-vae plan --dtype b", tmp_path) == {"bfloat16"}


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_other_shells_ask_the_same(name):
    """The script of each names the command; what it asks is answered, whether the shell is here or not."""
    script = shell("bash", "-c", f"_TEMPORAL_VAE_COMPLETE={name}_source temporal-vae")
    assert f"_TEMPORAL_VAE_COMPLETE={name}_complete" in script
    question = {"COMP_WORDS": "temporal-vae re", "COMP_CWORD": "re" if name == "fish" else "1"}
    assert "reconstruct" in shell("temporal-vae", _TEMPORAL_VAE_COMPLETE=f"{name}_complete", **question)


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_the_script_is_one_of_that_shell(name, tmp_path):
    (tmp_path / "script").write_text(
        shell("bash", "-c", f"_TEMPORAL_VAE_COMPLETE={name}_source temporal-vae")
    )
    shell(name, "-n", str(tmp_path / "script"))
