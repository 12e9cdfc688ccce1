# SPDX-License-Identifier: Apache-2.0
"""TextAttack, imported without what it names at its top and never uses for these attacks.

TextAttack 0.3.11 imports flair, bert-score, jieba and a dozen more when it is imported. What is not installed is
represented by empty modules while the import runs, and by nothing afterwards. flair always is, as its last release does
not import next to transformers 5, and datasets, which would remember TextAttack's cache folder as its own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import shlex
import sys
import tempfile
import types
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from pyprune.errors import InputError

# Imported by TextAttack at its top, used by features that no recipe here has.
UNUSED = (
    "OpenHowNet",
    "Levenshtein",
    "bert_score",
    "datasets",
    "flair",
    "jieba",
    "langdetect",
    "language_tool_python",
    "lemminflect",
    "more_itertools",
    "num2words",
    "pandas",
    "pinyin",
    "requests",
    "scipy",
    "terminaltables",
    "word2number",
)
_NEVER_REAL = ("flair", "datasets")
_NEEDED = ("textattack", "nltk", "lru", "editdistance")


def requirements() -> list[str]:
    """The packages to install, as pip takes them; they are complete, and are installed without dependencies."""
    text = resources.files("pyprune.attack").joinpath("requirements.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def install_line(python: str | None = None) -> str:
    """The one command that installs what ``pyprune attack`` needs into the environment of `python` (this one)."""
    words = [python or sys.executable or "python", "-m", "pip", "install", "--no-deps", *requirements()]
    return shlex.join(words)


def missing() -> list[str]:
    """Modules that are needed and not installed."""
    return [name for name in _NEEDED if name not in sys.modules and importlib.util.find_spec(name) is None]


def load() -> types.ModuleType:
    """Import TextAttack, once; nothing is downloaded and no folder made in the user's home.

    Raises
    ------
    InputError
        It is not installed; the message has the command.
    """
    check_installed()
    known = sys.modules.get("textattack")
    if known is not None:
        return known
    import nltk
    import transformers  # noqa: F401 - before TextAttack tells it of another cache folder

    with _unchanged_process(), without_downloads(nltk), stand_ins():
        return importlib.import_module("textattack")


def check_installed() -> None:
    """Raise an :class:`InputError` with the command that installs what is missing."""
    absent = missing()
    if absent:
        raise InputError(
            "attacks need TextAttack, and it is not installed",
            seen=f"no module {', '.join(absent)}",
            hint=install_line(),
        )


@contextlib.contextmanager
def without_downloads(nltk: Any) -> Iterator[None]:
    """TextAttack calls ``nltk.download`` when it is imported and in PWWS; here that does nothing."""
    real = nltk.download
    nltk.download = lambda *_, **__: False
    try:
        yield
    finally:
        nltk.download = real


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Empty modules for what of `UNUSED` is not installed, while the block runs."""
    absent = [
        name
        for name in UNUSED
        if name not in sys.modules and (name in _NEVER_REAL or importlib.util.find_spec(name) is None)
    ]
    finder = _Finder(frozenset(absent))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.names]:
            del sys.modules[name]


class _Finder:
    """Finds an empty module for each of `names` and everything below it."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


class _Empty(types.ModuleType):
    """A module that has everything: a class for each name in capitals, an empty module for each other one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            made = type(name, (), {"__module__": self.__name__})
            setattr(self, name, made)
            return made
        return importlib.import_module(f"{self.__name__}.{name}")


@contextlib.contextmanager
def _unchanged_process() -> Iterator[None]:
    """Put back what TextAttack changes when it is imported: environment, logging; throw its cache folder away."""
    environment = dict(os.environ)
    handlers, level = logging.root.handlers[:], logging.root.level
    # Its own set-up of logging disables every logger that is there already.
    known = [found for found in logging.root.manager.loggerDict.values() if isinstance(found, logging.Logger)]
    alive = [logger for logger in known if not logger.disabled]
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TA_CACHE_DIR"] = folder
            Path(folder, "post_install_check_3").touch()  # or else it downloads what it may need some day
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        for logger in alive:
            logger.disabled = False
        logging.getLogger("textattack.shared.utils.install").handlers.clear()
