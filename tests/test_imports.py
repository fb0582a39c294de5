"""What an import pulls in, and which way the dependencies point."""

import ast
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

import temporal_vae

PACKAGE = Path(temporal_vae.__file__).parent


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
    for name in {name for file in files for name in imports_of(file) if name.startswith("temporal_vae.")}:
        resolve_name(name)


@pytest.mark.parametrize(("part", "others"), [("model", ()), ("engine", ("model", "errors"))])
def test_dependencies_point_one_way(part, others):
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert len(files) >= 4
    own = {name for file in files for name in imports_of(file) if name.startswith("temporal_vae")}
    assert own
    assert {name.split(".")[1] for name in own} <= {part, *others}
