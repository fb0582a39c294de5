"""The README is for thirty seconds."""

import re

from doc_pages import ROOT, blocks

README = ROOT / "README.md"
TEXT = README.read_text()


def test_it_is_short():
    assert len(TEXT.splitlines()) < 120


def test_it_has_what_a_reader_looks_for():
    shell = [
        line.split("#")[0].strip()
        for block in blocks(README)
        if block.info == "sh"
        for line in block.code.splitlines()
    ]
    assert shell[:2] == ["make demo", "make test"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {"demo", "test", "docs"} <= set(targets)
    first = next(block for block in blocks(README) if block.info == "python")
    assert len([line for line in first.code.splitlines() if line.strip()]) <= 5
    assert "](docs/images/" in TEXT.split("## ")[0]  # a picture, above the first heading
    assert "](docs/decode-25-frames.md)" in TEXT.split("## ")[0]


def test_its_one_table_of_figures_names_machine_and_command():
    tables = re.findall(r"(?:^\|.*\n)+", TEXT, re.M)
    measured = [table for table in tables if re.search(r"\d s, |\d\.\dx", table)]
    assert len(measured) == 1
    behind = TEXT.split(measured[0])[1][:600]
    assert "cores of an AMD EPYC" in behind
    assert "`make bench" in behind
