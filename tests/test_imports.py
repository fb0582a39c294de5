"""What an import pulls in, and which way the dependencies point."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name, walk_packages

import pytest

import temporal_vae


def loaded_after(statement: str) -> set[str]:
    """Names of the top-level modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_import_is_light():
    heavy = {"torch", "numpy", "av", "diffusers", "transformers", "accelerate", "PIL"}
    loaded = loaded_after("import temporal_vae, numpy")
    assert loaded & heavy == {"numpy"}
    assert "temporal_vae" in loaded


def test_public_names():
    assert temporal_vae.__all__ == sorted(temporal_vae.__all__)
    assert dir(temporal_vae) == temporal_vae.__all__
    for name in temporal_vae.__all__:
        assert getattr(temporal_vae, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'autoencoder_kl'"):
        _ = temporal_vae.autoencoder_kl


def imports_of(file: Path) -> set[str]:
    """Modules that a file imports anywhere in it, by full name."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_what_scripts_import_is_there(folder):
    """Those that only run by hand, or in slow tests, too."""
    files = sorted((Path(__file__).parents[1] / folder).glob("*.py"))
    assert files
    ours = ("temporal_vae.", "benchmarks.")
    for name in {name for file in files for name in imports_of(file) if name.startswith(ours)}:
        resolve_name(name)


ROOT = Path(__file__).parents[1]
SHOWN = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*.py"))]


@pytest.mark.parametrize("file", SHOWN, ids=lambda file: file.name)
def test_docs_and_examples_import_what_is_public(file):
    """What stands in `__all__` of a package's `__init__`, and the errors."""
    text = file.read_text()
    blocks = [text] if file.suffix == ".py" else re.findall(r"```python\n(.*?)```", text, re.S)
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("temporal_vae.") for alias in node.names)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "temporal_vae":
                module = import_module(node.module)
                assert hasattr(module, "__path__") or node.module == "temporal_vae.errors"
                assert {alias.name for alias in node.names} <= set(module.__all__)


def packages():
    found = (info.name for info in walk_packages(temporal_vae.__path__, "temporal_vae.") if info.ispkg)
    return ["temporal_vae", *(name for name in found if hasattr(import_module(name), "__all__"))]


@pytest.mark.parametrize("package", packages())
def test_public_names_are_there(package):
    module = import_module(package)
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        _ = module.nothing_of_the_kind


def test_imports_point_one_way():
    """The contracts in `pyproject.toml`, by import-linter."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout
