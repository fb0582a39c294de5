"""The README and the pages of the docs, as the tests read them: their blocks of code, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN = {
    "datasets.md": "test_docs_datasets.py",
    "scaling.md": "test_docs_scaling.py",
    "install.md": "test_completion.py",
}
"""Pages whose blocks of `bash` a test of their own runs; those of `sh` run page by page."""

_BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A block of code, and why it does not run, if so."""

    page: str
    info: str
    code: str
    mark: str

    @property
    def reason(self) -> str:
        """Why it is not run; empty where it is."""
        return self.mark.removeprefix("no-run:").strip() if self.mark.startswith("no-run") else ""

    @property
    def small(self) -> str:
        """The code as tests run it: where the mark is `small: A = B`, with B in the place of A."""
        if not self.mark.startswith("small:"):
            return self.code
        shown, run = self.mark.removeprefix("small:").split(" = ")
        assert shown.strip() in self.code, f"{self.page}: {self.mark}"
        return self.code.replace(shown.strip(), run.strip())


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    return [
        Block(page.name, found["info"], found["code"], found["mark"] or "")
        for found in _BLOCK.finditer(page.read_text())
    ]


def lines(code: str) -> list[str]:
    """The lines of a shell block; one that goes on in the next is one."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def words_of(line: str) -> list[str] | None:
    """The arguments of the `temporal-vae` in a line of a shell, or None where there is none."""
    line = re.sub(r"\$\(.*?\)", "", line.removeprefix("$ "))
    line = re.sub(r'"?\$\w+"?', "1", line)  # a variable; numbers are what stands in them here
    words = shlex.split(re.split(r"\|\||&&|[|>]", line)[0], comments=True)
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words = words[1:]
    if words[:1] == ["temporal-vae"]:
        return words[1:]
    if "-m" in words[:-1] and words[words.index("-m") + 1] == "temporal_vae":
        return words[words.index("-m") + 2 :]
    return None
