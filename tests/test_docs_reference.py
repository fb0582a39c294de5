"""Pages that list what the source has: errors, environment variables, extras, public names."""

import ast
import re
from pathlib import Path

import pytest
from doc_pages import ROOT

from temporal_vae import errors

DOCS, SOURCE = ROOT / "docs", ROOT / "src" / "temporal_vae"
FILES = {file: file.read_text() for file in sorted(SOURCE.rglob("*.py"))}


def cells(page: str, column: int = 0) -> list[str]:
    """Cells of one column of all tables of a page."""
    rows = re.findall(r"^\| (.*) \|$", (DOCS / page).read_text(), re.M)
    return [re.split(r"(?<!\\) \| ", row)[column] for row in rows if not re.match(r"[-: |]+$", row)]


# Errors


def test_every_type_of_error_is_explained():
    listed = [name for cell in cells("errors.md") for name in re.findall(r"^\[?`(\w+Error)`", cell)]
    assert sorted(listed) == sorted(errors.__all__)
    headings = re.findall(r"^## (\w+Error)$", (DOCS / "errors.md").read_text(), re.M)
    assert sorted(headings) == sorted(set(errors.__all__) - {"TemporalVaeError"})


def test_what_the_types_are_is_true():
    for row in re.findall(r"^\| \[?`(\w+Error)`.*?\| (.*?) \|", (DOCS / "errors.md").read_text(), re.M):
        bases = {base.__name__ for base in getattr(errors, row[0]).__bases__} - {"TemporalVaeError"}
        assert set(re.findall(r"`(\w+)`", row[1])) == bases


def constants_of(tree: ast.Module) -> dict[str, str]:
    """Texts that a module gives a name."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


ALL_CONSTANTS = {
    name: text for file in FILES.values() for name, text in constants_of(ast.parse(file)).items()
}


def literals(text: str) -> str:
    """The text in the strings of a module; where a value is put in that is no constant, `…`."""
    found, tree = [], ast.parse(text)
    constants = ALL_CONSTANTS | constants_of(tree)

    def piece(node: ast.expr) -> str:
        if isinstance(node, ast.FormattedValue):
            return constants.get(ast.unparse(node.value), "…")
        return ast.literal_eval(node)

    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(map(piece, node.values)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


STRINGS = "\n".join(map(literals, FILES.values()))
MESSAGES = [cell.strip("`") for cell in cells("errors.md") if cell.startswith("`") and "…" in cell]


def test_there_are_messages():
    assert len(MESSAGES) >= 30


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:50])
def test_messages_are_those_of_the_source(message):
    """Each stretch between two values stands in the source."""
    stretches = [part for part in re.split("…", message) if len(part.strip(" ;:,.()")) > 2]
    assert stretches
    for part in stretches:
        assert part.strip() in STRINGS, part


# Environment variables

NAME = re.compile(r"[A-Z][A-Z_]{2,}")


def variables_of(text: str) -> set[str]:
    """Environment variables that a module reads or sets, by name or by a constant of its own."""
    if not any(word in text for word in ("environ", "getenv", "envvar")):
        return set()
    tree = ast.parse(text)
    constants = constants_of(tree)
    found: set[str] = set()
    for key in keys_of(tree):
        if isinstance(key, ast.Constant):
            found.add(key.value)
        elif isinstance(key, ast.Name) and key.id in constants:
            found.add(constants[key.id])
        else:  # the names come from elsewhere in the module
            texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
            found |= {value for value in texts if isinstance(value, str) and NAME.fullmatch(value)}
    return found


def keys_of(tree: ast.AST):
    """What `os.environ` is asked for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            yield node.slice
        if isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
            yield node.left
        if isinstance(node, ast.keyword) and node.arg == "envvar":  # of click
            yield node.value
        if (
            isinstance(node, ast.Call)
            and re.match(r"os\.(environ\.\w+|getenv)$", ast.unparse(node.func))
            and node.args
        ):
            yield node.args[0]


def test_variables_are_found():
    assert variables_of(
        "import os\nA = 'ONE_A'\nos.environ.get(A)\nos.environ['TWO']\n'SIX' in os.environ"
    ) == {
        "ONE_A",
        "TWO",
        "SIX",
    }
    assert variables_of("click.option('--a', envvar='SEVEN')") == {"SEVEN"}
    assert variables_of("import os\ndef f(x): return os.environ.get(x)\nf('FOUR_4'); f('FIVE')") == {"FIVE"}


def test_environment_variables_are_those_of_the_source():
    listed = {name for cell in cells("environment.md") for name in re.findall(r"`([A-Z_]+)`", cell)}
    assert listed == set().union(*map(variables_of, FILES.values()))


# Extras and names


def test_extras_are_those_of_the_project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = {name for cell in cells("install.md") for name in re.findall(r"`([a-z]+)`", cell)}
    assert listed == set(extras)


def public_names() -> dict[str, set[str]]:
    """What stands in `__all__` of each package, which is public, and of the errors."""
    found = {}
    for file in [*SOURCE.rglob("__init__.py"), SOURCE / "errors.py"]:
        package = ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(FILES[file]).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found[package] = set(ast.literal_eval(node.value)) - {"__version__"}
    return found


def test_every_public_name_is_in_the_api():
    pages = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    shown = re.findall(r"^::: (\S+)$", pages, re.M)
    assert len(shown) == len(set(shown))
    for package, public in public_names().items():
        inside = package.count(".") > 1  # what is public in a package of a package, that one shows
        if not inside and package != "temporal_vae.cli":
            missing = {
                name for name in public if not {f"{package}.{name}", f"temporal_vae.{name}"} & set(shown)
            }
            assert not missing, f"{package}: {sorted(missing)}"


def test_files_named_in_the_docs_are_there():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for path in re.findall(
            r"`((?:src|tests|benchmarks|examples|docs|integrations)/[\w./-]+\.\w+)`", page.read_text()
        ):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"
    assert Path(ROOT / "examples").is_dir()
