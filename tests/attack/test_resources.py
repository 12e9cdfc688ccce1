# SPDX-License-Identifier: Apache-2.0
"""What recipes need: found in one folder or given one by one, and missed by name."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from pyprune.attack import resources
from pyprune.attack.library import UNUSED, install_line, requirements, stand_ins
from pyprune.attack.resources import Resources
from pyprune.errors import InputError


def test_what_is_given_comes_before_the_folder(tmp_path: Path) -> None:
    (tmp_path / "nltk_data").mkdir()
    (tmp_path / "sentence-encoder").mkdir()
    (tmp_path / "synonyms.json").write_text("{}")
    (tmp_path / "mine.json").write_text("{}")
    found = Resources.of(tmp_path, synonyms=tmp_path / "mine.json")
    assert found == Resources(
        nltk_data=tmp_path / "nltk_data", synonyms=tmp_path / "mine.json", encoder=tmp_path / "sentence-encoder"
    )
    (tmp_path / "counter-fitted-vectors.txt").write_text("")  # the original comes before what stands in for it
    assert Resources.of(tmp_path).synonyms == tmp_path / "counter-fitted-vectors.txt"
    assert Resources.of() == Resources()
    with pytest.raises(InputError, match="there is no"):
        Resources.of(tmp_path / "none")
    with pytest.raises(InputError, match="--nltk-data"):
        Resources.of(nltk_data=tmp_path / "none")


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        ("textfooler", "--synonyms"),
        ("textbugger", "--synonyms"),
        ("bert-attack", "--masked-lm"),
        ("bae", "--masked-lm"),
    ],
)
def test_what_cannot_be_done_without(recipe: str, option: str) -> None:
    with pytest.raises(InputError) as caught:
        resources.check(recipe, Resources())
    assert caught.value.hint is not None
    assert option in caught.value.hint
    resources.check("pwws", Resources())
    resources.check("textfooler", Resources(download=True))


class FakeNltk:
    """Has `present`; a download makes a thing present."""

    def __init__(self, *present: str) -> None:
        self.present, self.fetched = set(present), []
        self.data = types.SimpleNamespace(path=["somewhere"], find=self._find)

    def _find(self, place: str) -> str:
        if place not in self.present:
            raise LookupError(place)
        return f"/data/{place}"

    def download(self, name: str, **_: object) -> None:
        self.fetched.append(name)
        self.present |= {place for place in resources.NLTK.values() if place.endswith(f"/{name}")}


def test_nltk_data_is_downloaded_only_when_asked_for(tmp_path: Path) -> None:
    nltk = FakeNltk("corpora/stopwords")
    with pytest.raises(InputError) as caught:
        resources.prepare_nltk("pwws", Resources(), nltk)
    assert "python -m nltk.downloader wordnet" in str(caught.value)
    assert nltk.fetched == []
    stated = resources.prepare_nltk("pwws", Resources(nltk_data=tmp_path, download=True), nltk)
    assert nltk.fetched == ["wordnet"]
    assert nltk.data.path[0] == str(tmp_path.resolve())
    assert [(entry["name"], entry["kind"]) for entry in stated] == [("stopwords", "original"), ("wordnet", "original")]
    # an archive is as good
    zipped = FakeNltk("corpora/stopwords", "corpora/wordnet.zip")
    assert resources.prepare_nltk("pwws", Resources(), zipped)[1]["source"] == "/data/corpora/wordnet.zip"


def test_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "near.json"
    path.write_text(json.dumps({"good": ["fine", "nice"]}))
    assert resources.read_neighbours(path) == {"good": ["fine", "nice"]}
    for text, message in (("{", "cannot be read"), ("[1]", "not a list of"), ('{"a": [1]}', "not a list of")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            resources.read_neighbours(path)


def test_hashes_of_folders_know_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        return resources.sha256_of(tmp_path / name)

    first = folder("one", a="x", b="y")
    assert folder("two", a="x", b="y") == first
    assert len({first, folder("three", a="x", b="z"), folder("four", a="x", c="y")}) == 3


def test_install_line_is_one_command_with_pins() -> None:
    line = install_line("python")
    assert line.startswith("python -m pip install --no-deps textattack==0.3.11 ")
    assert "nltk==" in line
    assert all(entry.split(">=")[0].split("==")[0].replace("-", "").isalnum() for entry in requirements())


def test_stand_ins_are_there_only_inside() -> None:
    absent = [name for name in UNUSED if name not in sys.modules and name in ("flair", "jieba", "pinyin")]
    before = set(sys.modules)
    with stand_ins():
        import flair.data
        from flair.models import SequenceTagger

        class Derived(flair.data.Tokenizer):  # type: ignore[misc]
            pass

        flair.device = "cpu"
        assert issubclass(Derived, flair.data.Tokenizer)
        assert isinstance(SequenceTagger, type)
    assert not [name for name in set(sys.modules) - before if name.partition(".")[0] in absent]
    with pytest.raises(ImportError):
        import flair
