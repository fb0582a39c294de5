"""What a source of a training run stands for: files, folders, patterns, manifests, packages, scenes."""

import cProfile
import json
import os
import pstats
import sys
from pathlib import Path

import pytest
from refusals import refused

from temporal_vae.errors import ConfigError
from temporal_vae.training.config.fields import Source
from temporal_vae.training.data.sources import items_of


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, path: object = "", **how: object) -> list[str]:
    """Names of the files that a source finds, relative to `folder`."""
    items = items_of(Source(path=str(folder / str(path)), **how))
    return [item.path.relative_to(folder).as_posix() for item in items]


def test_a_file(tmp_path):
    touch(tmp_path, "a.mp4", "odd.name", ".hidden.mp4")
    assert found(tmp_path, "a.mp4") == ["a.mp4"]
    assert found(tmp_path, "odd.name") == ["odd.name"]
    assert found(tmp_path, ".hidden.mp4") == [".hidden.mp4"]  # it was asked for by name
    (item,) = items_of(Source(path=str(tmp_path / "a.mp4")))
    assert (item.start, item.end, item.weight) == (0.0, None, 1.0)


def test_a_folder_and_those_below(tmp_path):
    touch(tmp_path, "b.MP4", "a.mkv", "deep/er/c.JPeG", "deep/d.gif", "e.ts", "notes.txt", "README", "mp4")
    touch(tmp_path, ".hidden.mp4", "._a.mkv", ".thumbnails/f.jpg", "deep/.git/g.png", "g.mp4.part", "h.csv")
    touch(tmp_path, "frames.mp4/1.png")  # a folder with a file's name
    assert found(tmp_path) == ["a.mkv", "b.MP4", "deep/d.gif", "deep/er/c.JPeG", "e.ts", "frames.mp4/1.png"]
    assert found(tmp_path, "deep") == ["deep/d.gif", "deep/er/c.JPeG"]


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "elsewhere/a.mp4", "data/b.mp4", "data/deep/c.mp4")
    data = tmp_path / "data"
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere")
    (data / "deep" / "loop").symlink_to(data)
    (data / "deep" / "d.mp4").symlink_to(tmp_path / "elsewhere" / "a.mp4")
    (data / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    names = found(data)
    assert names[:2] == sorted(names[:2])
    assert len([name for name in names if name in ("again/a.mp4", "link/a.mp4")]) == 1
    assert set(names) - {"again/a.mp4", "link/a.mp4"} == {
        "b.mp4",
        "broken.mp4",  # it is told of when it is read
        "deep/c.mp4",
        "deep/d.mp4",
    }
    (tmp_path / "shortcut").symlink_to(data)
    assert len(found(tmp_path, "shortcut")) == len(names)


def test_patterns(tmp_path):
    touch(tmp_path, "b.mp4", "a.mp4", "c.mkv", "deep/d.mp4", ".hidden.mp4", "[x].mp4")
    (tmp_path / "e.mp4").mkdir()
    assert found(tmp_path, "?.mp4") == ["a.mp4", "b.mp4"]
    assert found(tmp_path, "**/*.mp4") == ["[x].mp4", "a.mp4", "b.mp4", "deep/d.mp4"]
    assert found(tmp_path, "[x].mp4") == ["[x].mp4"]  # a name that is there is no pattern
    touch(tmp_path, "[2020] trip/f.mp4")
    assert found(tmp_path, "[2020] trip") == ["[2020] trip/f.mp4"]


def test_exclude(tmp_path):
    touch(tmp_path, "a.mp4", "b.png", "deep/c.mp4", "deep/d.png")
    assert found(tmp_path, exclude=("*.png",)) == ["a.mp4", "deep/c.mp4"]
    assert found(tmp_path, exclude=("a.mp4", "*/deep/*")) == ["b.png"]
    everything = Source(path=str(tmp_path), exclude=("*",))
    refused(ConfigError, lambda: items_of(everything), tmp_path, "all of it is excluded")


def test_variables(tmp_path, monkeypatch):
    touch(tmp_path, "videos/a.mp4")
    monkeypatch.setenv("MEDIA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    for path in ("$MEDIA/videos", "${MEDIA}/videos/a.mp4", "~/videos"):
        assert [item.path.name for item in items_of(Source(path=path))] == ["a.mp4"]
    for path in ("$NOWHERE/a.mp4", "${NOWHERE}"):
        refused(
            ConfigError, lambda path=path: items_of(Source(path=path)), path, "NOWHERE is not set", "export"
        )


def test_scenes():
    items = items_of(Source(scenes=3))
    assert [(item.scene, item.path) for item in items] == [(0, None), (1, None), (2, None)]


def test_nothing_there(tmp_path):
    touch(tmp_path, "notes.txt")
    for path in (".", "*.mp4"):
        refused(
            ConfigError,
            lambda path=path: found(tmp_path, path),
            "holds no video or image",
            "name a file, a folder",
        )
    for path in ("missing.mp4", "missing.csv", "missing/"):
        refused(
            ConfigError, lambda path=path: found(tmp_path, path), path.strip("/"), "no such file or folder"
        )


# Packages


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with files in it."""
    touch(tmp_path, "picture_book/__init__.py", "picture_book/pages/a.png", "picture_book/pages/b.png")
    touch(tmp_path, "leaflet.py")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path / "picture_book"


def test_files_of_packages(package):
    def names(path):
        return [item.path.name for item in items_of(Source(path=path))]

    assert names("package:picture_book/pages/a.png") == ["a.png"]
    assert names("package:picture_book/pages") == ["a.png", "b.png"]
    assert names("package:picture_book") == ["a.png", "b.png"]
    assert names("package:picture_book/pages/*.png") == ["a.png", "b.png"]


@pytest.mark.parametrize("name", ["no_such_book", "no.such.book", "", ".", "..", "leaflet"])
def test_packages_that_are_not_there(package, name):
    source = Source(path=f"package:{name}/a.png")
    refused(ConfigError, lambda: items_of(source), f"package:{name}/a.png", "installed", "pip install")


def test_files_that_a_package_lacks(package):
    source = Source(path="package:picture_book/pages/c.png")
    refused(ConfigError, lambda: items_of(source), "package:picture_book/pages/c.png: no such file")


# Manifests


def test_a_csv_manifest(tmp_path):
    text = 'path, start, end, weight, caption\na.mp4\n"b, c.mp4", 1.5, 3, 2, "two\nlines"\n\n/x/d.mp4,,,0.5\n'
    (tmp_path / "list.CSV").write_text(text, encoding="utf-8-sig")
    a, b, d = items_of(Source(path=str(tmp_path / "list.CSV")))
    assert (a.path, a.start, a.end, a.weight) == (tmp_path / "a.mp4", 0.0, None, 1.0)
    assert (b.path, b.start, b.end, b.weight) == (tmp_path / "b, c.mp4", 1.5, 3.0, 2.0)
    assert (d.path, d.start, d.end, d.weight) == (Path("/x/d.mp4"), 0.0, None, 0.5)


def test_a_jsonl_manifest(tmp_path):
    rows = [
        {"path": "deep/a.mp4", "start": 2, "text": "x\u2028y"},
        "b.mp4",
        {"path": "c.mp4", "weight": None},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "list.jsonl").write_text(text, encoding="utf-8-sig")
    a, b, c = items_of(Source(path=str(tmp_path / "list.jsonl")))
    assert (a.path, a.start) == (tmp_path / "deep" / "a.mp4", 2.0)
    assert (b.path, b.weight) == (tmp_path / "b.mp4", 1.0)
    assert (c.path, c.weight) == (tmp_path / "c.mp4", 1.0)


def test_several_manifests(tmp_path):
    for number in range(2):
        (tmp_path / f"part{number}.jsonl").write_text(f'"{number}.mp4"\n')
    assert found(tmp_path, "part*.jsonl", exclude=("0.mp4",)) == ["1.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.csv", "file\nx.mp4\n", ["line 2 has no path", "start, end and weight"]),
        ("a.csv", "path;start\nx.mp4;3\n", ["line 2 has no path"]),
        ("a.csv", "path,start\nx.mp4,soon\n", ["line 2: start='soon' is no number of 0 or more"]),
        ("a.csv", "path,start\nx.mp4,-1\n", ["line 2: start='-1' is no number of 0 or more"]),
        ("a.csv", "path,start,end\nx.mp4,3,3\n", ["line 2: start=3, end=3.0", "after start"]),
        ("a.csv", "path,weight\nx.mp4,1\ny.mp4,0\n", ["line 3", "weight=0", "weight above 0"]),
        ("a.csv", "path,weight\nx.mp4,nan\n", ["line 2: weight='nan' is no number"]),
        ("a.csv", "path,weight\nx.mp4,inf\n", ["line 2: weight='inf' is no number"]),
        ("a.csv", "path,start\nx, y.mp4,3\n", ["line 2 has more entries", "quotes"]),
        ("a.csv", "path\n" + "x" * 200_000, ["is no CSV after line 1", "limit"]),
        ("a.csv", "path\n", ["holds no video"]),
        ("a.csv", "", ["holds no video"]),
        ("a.jsonl", '{"path": "x.mp4"}\n{path: x}\n', ["line 2 is no JSON", "one object per line"]),
        ("a.jsonl", '["x.mp4"]\n', ["line 1 has no path"]),
        ("a.jsonl", '{"path": 3}\n', ["line 1 has no path"]),
        ("a.jsonl", '{"path": "x.mp4", "start": [1]}\n', ["line 1: start=[1] is no number"]),
        ("a.jsonl", '{"path": "x.mp4", "weight": NaN}\n', ["line 1: weight=nan is no number"]),
    ],
)
def test_bad_manifests(tmp_path, name, text, parts):
    (tmp_path / name).write_text(text)
    refused(ConfigError, lambda: found(tmp_path, name), tmp_path / name, *parts)


def test_a_manifest_that_is_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"path\n\xff\xfe.mp4")
    refused(ConfigError, lambda: found(tmp_path, "a.csv"), tmp_path / "a.csv", "UTF-8")


def test_work_grows_in_step_with_the_number_of_files(tmp_path):
    def calls(files: int) -> int:
        for number in range(files):
            os.close(os.open(tmp_path / f"{number}.mp4", os.O_CREAT))
        with cProfile.Profile() as profile:
            assert len(found(tmp_path, exclude=("*.png", "7.mp4"))) == files - 1
        return pstats.Stats(profile).total_calls

    few = calls(400)
    assert calls(1600) < 5 * few
