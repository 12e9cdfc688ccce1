# SPDX-License-Identifier: Apache-2.0
"""Fast tokenizers with fewer tokens: which have to stay so that text is cut up as before, and the file without others.

All of it happens on the JSON of the ``tokenizers`` library. Every kind of model chooses among the tokens it has by an
order that does not change when others go: the longest match (WordPiece), the earliest merge (BPE), the best path
(Unigram). So text that needed only tokens that stay is cut up as before, bit by bit.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyprune.errors import InputError

KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_FILE = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
# Other forms of the vocabulary that may lie beside the JSON, and would still hold all of it.
_OTHERS = ("*.txt", "*.model", "*.bpe", "vocab.json", "added_tokens.json")


class Tokens:
    """The vocabulary of a fast tokenizer.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast

    Attributes
    ----------
    kind : {"WordPiece", "BPE", "Unigram", "WordLevel"}
    ids : dict of str to int
        All tokens.

    Raises
    ------
    InputError
        No fast tokenizer, or of a kind that cannot be cut.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, backend = tokenizer, getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not getattr(tokenizer, "is_fast", False):
            raise InputError(
                "only fast tokenizers can be trimmed",
                seen=type(tokenizer).__name__,
                hint="AutoTokenizer.from_pretrained of a folder with tokenizer.json",
            )
        self.state: dict[str, Any] = json.loads(backend.to_str())
        self._model: dict[str, Any] = self.state["model"]
        self.kind = str(self._model.get("type"))
        if self.kind not in KINDS:
            raise InputError("a tokenizer of this kind cannot be trimmed", seen=self.kind, hint=", ".join(KINDS))
        self._own = self._own_tokens()
        self._added: dict[str, int] = {entry["content"]: entry["id"] for entry in self.state["added_tokens"]}
        self.ids: dict[str, int] = {**self._own, **self._added}

    def _own_tokens(self) -> dict[str, int]:
        vocabulary = self._model["vocab"]
        if self.kind == "Unigram":
            return {piece: index for index, (piece, _) in enumerate(vocabulary)}
        return dict(vocabulary)

    def special(self) -> set[str]:
        """Added tokens, and those that the tokenizer names: unknown, padding, those around a text."""
        found = {*self._added, *map(str, self._tokenizer.all_special_tokens), *_named(self.state["post_processor"])}
        found |= {str(self._model.get("unk_token")), str((self.state["padding"] or {}).get("pad_token"))}
        if self._model.get("unk_id") is not None:
            found.add(self._model["vocab"][self._model["unk_id"]][0])
        return found & self.ids.keys()

    def letters(self) -> set[str]:
        """What any other text can be spelled with: single characters, within words too, and bytes."""
        found = {token for token in self._own if len(self._bare(token)) == 1}
        if self._model.get("byte_fallback"):
            found |= {token for token in self._own if _BYTE.fullmatch(token)}
        if self.kind == "Unigram":
            # An unknown character costs as much as the worst token and a little more: paths depend on that one.
            found.add(min(self._model["vocab"], key=lambda entry: entry[1])[0])
        return found

    def _bare(self, token: str) -> str:
        prefix, suffix = self._model.get("continuing_subword_prefix"), self._model.get("end_of_word_suffix")
        return token.removeprefix(prefix or "").removesuffix(suffix or "")

    def with_parts(self, tokens: Iterable[str]) -> set[str]:
        """Tokens together with all that they are merged from."""
        if self.kind != "BPE":
            return set(tokens)
        ranks = {pair: rank for rank, pair in enumerate(_pairs(self._model))}
        makers: dict[str, list[tuple[str, str]]] = {}
        for pair in ranks:
            makers.setdefault(self._merged(*pair), []).append(pair)
        found: set[str] = set()
        left = list(tokens)
        while left:
            token = left.pop()
            if token in found:
                continue
            found.add(token)
            if token in self._own:
                pairs = self._derivation(token, ranks)
                left += [part for pair in (makers.get(token, ()) if pairs is None else pairs) for part in pair]
        return found & self.ids.keys()

    def _merged(self, first: str, second: str) -> str:
        return first + second.removeprefix(self._model.get("continuing_subword_prefix") or "")

    def _derivation(self, token: str, ranks: Mapping[tuple[str, str], int]) -> list[tuple[str, str]] | None:
        """The merges that make a token of its characters: within a word the same, or it would not have come about.

        None: merges make something else of them.
        """
        prefix, suffix = (self._model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix"))
        inner, last = bool(prefix) and token.startswith(prefix), bool(suffix) and token.endswith(suffix)
        parts = list(self._bare(token))
        parts = [(prefix if inner or place else "") + part for place, part in enumerate(parts)]
        if last and parts:
            parts[-1] += suffix
        pairs = []
        while len(parts) > 1:
            rank, place = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(parts)))
            if rank == len(ranks):
                return None
            pair = parts[place], parts[place + 1]
            pairs.append(pair)
            parts[place : place + 2] = [self._merged(*pair)]
        return pairs if parts == [token] else None

    def order(self, kept: Collection[str]) -> list[str]:
        """Kept tokens by their new ids: those of the model in their old order, then added ones, which must be last."""
        own = sorted((token for token in self._own if token in kept), key=self._own.__getitem__)
        more = [token for token in self._added if token in kept and token not in self._own]
        return own + sorted(more, key=self._added.__getitem__)

    def without_others(self, order: Sequence[str]) -> Any:
        """A tokenizer of the same class that has these tokens only, their ids from 0.

        Raises
        ------
        InputError
            The class makes something else of the file.
        """
        new = {token: index for index, token in enumerate(order)}
        state = self._cut(new)
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            self._tokenizer.save_pretrained(folder)
            for pattern in _OTHERS:
                for file in folder.glob(pattern):
                    file.unlink()
            (folder / _FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
            _renumber(folder / _SETTINGS, new)
            try:
                tokenizer = type(self._tokenizer).from_pretrained(folder, local_files_only=True)
            except Exception as error:  # each class builds itself in a way of its own
                seen = f"{type(error).__name__}: {error}"[:300]
                raise InputError(f"{type(self._tokenizer).__name__} cannot be trimmed", seen=seen) from error
        found = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
        if found != new:
            wrong = sorted(token for token in found.keys() | new.keys() if found.get(token) != new.get(token))
            raise InputError(
                f"{type(self._tokenizer).__name__} cannot be trimmed: it gives tokens other numbers than its file",
                seen=", ".join(f"{token!r}: {found.get(token)} instead of {new.get(token)}" for token in wrong[:4]),
            )
        tokenizer.name_or_path = self._tokenizer.name_or_path
        tokenizer.vocab_file = None  # of the original; some classes would copy it when they are saved
        return tokenizer

    def _cut(self, new: Mapping[str, int]) -> dict[str, Any]:
        """The JSON with these tokens only."""
        state = copy.deepcopy(self.state)
        model = state["model"]
        if self.kind == "Unigram":
            scores = dict(map(tuple, model["vocab"]))
            model["vocab"] = [[token, scores[token]] for token in new if token in self._own]
            if model["unk_id"] is not None:
                model["unk_id"] = new[self._model["vocab"][model["unk_id"]][0]]
        else:
            model["vocab"] = {token: index for token, index in new.items() if token in self._own}
        if self.kind == "BPE":
            left = new.keys() & self._own.keys()
            model["merges"] = [list(pair) for pair in _pairs(self._model) if {*pair, self._merged(*pair)} <= left]
        state["added_tokens"] = sorted(
            ({**entry, "id": new[entry["content"]]} for entry in state["added_tokens"] if entry["content"] in new),
            key=lambda entry: int(entry["id"]),
        )
        if state["padding"] is not None and state["padding"]["pad_token"] in new:
            state["padding"]["pad_id"] = new[state["padding"]["pad_token"]]
        _point(state["post_processor"], new)
        return state


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges, earliest first; files have them as pairs or as one text."""
    return [tuple(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in model["merges"]]


def _processors(state: Any) -> Iterable[dict[str, Any]]:
    if isinstance(state, dict):
        yield state
        for inner in state.get("processors") or ():
            yield from _processors(inner)


def _named(post_processor: Any) -> set[str]:
    """Tokens that are put around a text."""
    found: set[str] = set()
    for state in _processors(post_processor):
        if isinstance(state.get("special_tokens"), dict):
            found |= {token for entry in state["special_tokens"].values() for token in entry["tokens"]}
        found |= {state[key][0] for key in ("cls", "sep") if isinstance(state.get(key), list)}
    return found


def _point(post_processor: Any, new: Mapping[str, int]) -> None:
    """Give the tokens around a text their new ids."""
    for state in _processors(post_processor):
        if isinstance(state.get("special_tokens"), dict):
            for entry in state["special_tokens"].values():
                entry["ids"] = [new[token] for token in entry["tokens"]]
        for key in ("cls", "sep"):
            if isinstance(state.get(key), list):
                state[key] = [state[key][0], new[state[key][0]]]


def _renumber(path: Path, new: Mapping[str, int]) -> None:
    """Added tokens in the settings of transformers 4, which lists them by their ids."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    listed = settings.get("added_tokens_decoder")
    if isinstance(listed, dict):
        settings["added_tokens_decoder"] = {
            str(new[entry["content"]]): entry for entry in listed.values() if entry["content"] in new
        }
        path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
