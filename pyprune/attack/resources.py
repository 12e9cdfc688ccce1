# SPDX-License-Identifier: Apache-2.0
"""The files a recipe needs: where they are, and whether they are the recipe's own or something in their place."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyprune.errors import InputError

# What each recipe reads at run time.
NLTK = {
    "stopwords": "corpora/stopwords",
    "tagger": "taggers/averaged_perceptron_tagger_eng",
    "tagset": "taggers/universal_tagset",
    "wordnet": "corpora/wordnet",
}
NEEDS: dict[str, tuple[str, ...]] = {
    "textfooler": ("stopwords", "tagger", "tagset", "synonyms", "encoder"),
    "textbugger": ("stopwords", "synonyms", "encoder"),
    "pwws": ("stopwords", "wordnet"),
    "deepwordbug": ("stopwords",),
    "bert-attack": ("stopwords", "masked-lm", "encoder"),
    "bae": ("stopwords", "tagger", "tagset", "masked-lm", "encoder"),
}
# Where each is looked for inside the folder of --resources, first come.
PLACES = {
    "nltk_data": ("nltk_data",),
    "synonyms": ("counter-fitted-vectors.txt", "paragramcf", "synonyms.json", "lexicon/synonyms_k50.json"),
    "encoder": ("universal-sentence-encoder", "sentence-encoder"),
    "masked_lm": ("masked-lm",),
}
_VECTORS = "counter-fitted vectors (Mrkšić et al. 2016)"
_USE = "Universal Sentence Encoder"


@dataclass(frozen=True)
class Resources:
    """Where things are.

    Attributes
    ----------
    nltk_data : Path, optional
        Folder with ``corpora`` and ``taggers``; without it NLTK looks where it always does.
    synonyms : Path, optional
        Counter-fitted vectors (``counter-fitted-vectors.txt``, or TextAttack's folder ``paragramcf``), which are the
        original; or a JSON object of lists, word to neighbours, nearest first, which is a stand-in.
    encoder : Path, optional
        A saved Universal Sentence Encoder, the original; or a folder of a transformers model whose last states are
        averaged, a stand-in.
    masked_lm : str, optional
        Folder or hub name of a masked language model.
    download : bool
        Fetch from the network what is not here; otherwise nothing is.
    cache : Path, optional
        Folder for encodings of sentences, which later runs find there, of other models too. A folder that is not
        there is made.
    """

    nltk_data: Path | None = None
    synonyms: Path | None = None
    encoder: Path | None = None
    masked_lm: str | None = None
    download: bool = False
    cache: Path | None = None

    @classmethod
    def of(
        cls,
        folder: str | Path | None = None,
        *,
        download: bool = False,
        cache: str | Path | None = None,
        **given: str | Path | None,
    ) -> Resources:
        """What is `given`, and the rest from `folder` as far as it is there.

        Raises
        ------
        InputError
            A path that is given does not exist.
        """
        found: dict[str, Any] = {}
        for name in PLACES:
            value = given.get(name)
            if value is not None:
                path = Path(value).expanduser()
                if name != "masked_lm" and not path.exists():
                    raise InputError(f"there is no {path}", asked=f"--{name.replace('_', '-')} {value}")
                found[name] = str(value) if name == "masked_lm" else path
        if folder is not None:
            root = Path(folder).expanduser()
            if not root.is_dir():
                raise InputError(f"there is no folder {root}", asked=f"--resources {folder}")
            for name, places in PLACES.items():
                here = next((root / place for place in places if (root / place).exists()), None)
                if here is not None:
                    found.setdefault(name, str(here) if name == "masked_lm" else here)
        return cls(download=download, cache=Path(cache).expanduser() if cache is not None else None, **found)


def statement(name: str, kind: str, what: str, source: object = None, sha256: str | None = None) -> dict[str, Any]:
    """One line of ``resources`` in a result: `kind` is "original", "stand-in" or "dropped"."""
    return {"name": name, "kind": kind, "what": what, "source": str(source) if source else None, "sha256": sha256}


def check(recipe: str, resources: Resources) -> None:
    """Raise an :class:`InputError` for what `recipe` cannot do without and no file is named for."""
    needs = NEEDS[recipe]
    if "masked-lm" in needs and resources.masked_lm is None:
        raise InputError(
            f"the recipe {recipe} takes its words from a masked language model",
            seen="none is given",
            hint="--masked-lm DIR, the folder of a model such as bert-base-uncased",
        )
    if "synonyms" in needs and resources.synonyms is None and not resources.download:
        raise InputError(
            f"the recipe {recipe} takes its words from the {_VECTORS}",
            seen="neither the vectors nor a list of neighbours is given",
            hint="--synonyms FILE (counter-fitted-vectors.txt, the folder paragramcf, or a .json of neighbours), or "
            "--download",
        )


def prepare_nltk(recipe: str, resources: Resources, nltk: Any) -> list[dict[str, Any]]:
    """Make NLTK find what `recipe` needs, fetch it if that is allowed, and state it.

    Raises
    ------
    InputError
        Something is not there.
    """
    if resources.nltk_data is not None:
        folder = str(resources.nltk_data.resolve())
        if folder not in nltk.data.path:
            nltk.data.path.insert(0, folder)
    stated, absent = [], []
    for name in NEEDS[recipe]:
        place = NLTK.get(name)
        if place is None:
            continue
        if not _has(nltk, place) and resources.download:
            target = str(resources.nltk_data) if resources.nltk_data is not None else None
            nltk.download(place.partition("/")[2], download_dir=target, quiet=True)
        if _has(nltk, place):
            stated.append(statement(name, "original", f"NLTK {place}", _where(nltk, place)))
        else:
            absent.append(place)
    if absent:
        packages = " ".join(place.partition("/")[2] for place in absent)
        raise InputError(
            f"the recipe {recipe} needs data of NLTK that is not here",
            seen=f"no {', '.join(absent)} in {', '.join(nltk.data.path[:3])}, ...",
            hint=f"python -m nltk.downloader {packages}; or --nltk-data DIR; or --download",
        )
    return stated


def _has(nltk: Any, place: str) -> bool:
    return _where(nltk, place) is not None


def _where(nltk: Any, place: str) -> str | None:
    for candidate in (place, f"{place}.zip"):
        try:
            return str(nltk.data.find(candidate))
        except (LookupError, OSError, zipfile.BadZipFile):
            continue
    return None


def read_neighbours(path: Path) -> dict[str, list[str]]:
    """A JSON object: a word in lower case to a list of words, nearest first.

    Raises
    ------
    InputError
        The file is something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON", seen=str(error)) from None
    if not isinstance(table, dict) or not all(
        isinstance(words, list) and all(isinstance(word, str) for word in words) for words in table.values()
    ):
        raise InputError(f"{path} is not a list of neighbours", hint='a JSON object: {"good": ["fine", "nice"], ...}')
    return table


def sha256_of(path: Path) -> str:
    """Hash of a file, or of the names and contents of the files of a folder."""
    digest = hashlib.sha256()
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(os.fsencode(file.relative_to(path)) + b"\0")
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
