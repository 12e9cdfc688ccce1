# SPDX-License-Identifier: Apache-2.0
"""Open a model and its tokenizer, with a message for everything that can be wrong with a folder.

Weights are read from safetensors only: unpickling a ``.bin`` runs whatever code is inside. Code of a repository is
never run. Files that are here (the folder, or the local cache) come before the hub.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.sparse.loading import load_compact, load_sparse
from pyprune.sparse.storage import is_sparse
from pyprune.structured.shapes import is_compact
from pyprune.tasks.hub import patience

HEADS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
}
_JUDGED = ("ForCausalLM", "ForQuestionAnswering")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


def open_model(
    name: str, *, head: str | None = None, families: Sequence[str] | None = None, stored_type: bool = False
) -> Any:
    """Load a model with its head in float32, in evaluation mode.

    Parameters
    ----------
    name : str
        Folder, or repository on the Hugging Face hub.
    head : str, optional
        ``"ForSequenceClassification"`` ...: required head; by default whichever the checkpoint was saved with.
    families : sequence of str, optional
        Values of ``config.model_type`` that will do; checked before the weights are read.
    stored_type : bool
        In the type in which it is stored instead.

    Raises
    ------
    InputError
        No such folder or repository, no safetensors, a missing shard, a damaged file, an unknown family, no head.
    """
    transformers = silent_transformers()
    config = _read_config(name)
    if families is not None and config["model_type"] not in families:
        raise InputError(
            f"{name}: models of type {config['model_type']!r} cannot be pruned",
            seen=f"architectures: {', '.join(map(str, config.get('architectures') or ['(not stated)']))}",
            hint=f"one of {', '.join(families)}; or prune single matrices with pyprune.solve",
        )
    architecture = (config.get("architectures") or [""])[0]
    suffix = next((known for known in HEADS if architecture.endswith(known)), None)
    if suffix is None or (head is not None and suffix != head):
        raise InputError(
            f"{name}: a fine-tuned model is needed"
            + (f", {architecture or 'this one'} has no head for {_plain(head)}" if head else ""),
            seen=f"architectures: {architecture or '(not stated in config.json)'}",
            hint=f"a checkpoint saved from {HEADS[head] if head else ', '.join(HEADS.values())}",
        )
    if Path(name).is_dir() and is_sparse(Path(name)):
        # what is to be pruned again must be dense
        return _typed(load_sparse(Path(name), dense=families is not None), stored_type)
    if Path(name).is_dir():
        _check_weights(Path(name))
        if is_compact(Path(name)):
            return _typed(load_compact(Path(name)), stored_type)
    loader = getattr(transformers, HEADS[suffix])
    with _explained(name, "model"):
        model, found = _local_first(loader, name, use_safetensors=True, output_loading_info=True, dtype="auto")
    missing = sorted(str(key) for key in found["missing_keys"])
    mismatched = [str(key) for key in found.get("mismatched_keys", ())]
    if missing or mismatched:
        raise InputError(
            f"{name}: the checkpoint does not hold all weights of a {architecture}",
            seen=f"missing or of another shape: {', '.join((missing + mismatched)[:4])}",
            hint="they would be random numbers; use a checkpoint that was fine-tuned and saved whole",
        )
    return _typed(model, stored_type)


def _typed(model: Any, stored_type: bool) -> Any:
    # float32 for fp16 and bf16 files: exact, and what a CPU computes in
    return model.eval() if stored_type else model.float().eval()


def head_of(name: str) -> str:
    """The head to judge a checkpoint with: that of a language model or for answers, if it has one; else of classes."""
    architecture = str((_read_config(name).get("architectures") or [""])[0])
    return next((head for head in _JUDGED if architecture.endswith(head)), "ForSequenceClassification")


def widened(name: str) -> str | None:
    """Say, of a checkpoint in 16 bits, that what is made of it is saved in 32; None of others."""
    config = _read_config(name)
    kind = str(config.get("dtype") or config.get("torch_dtype"))
    if kind not in ("float16", "bfloat16"):
        return None
    return f"{name} is stored in {kind}; the result is saved in float32: twice as large, without --values {kind}"


def open_tokenizer(name: str) -> Any:
    """Load the fast tokenizer of a model.

    Raises
    ------
    InputError
        It is missing or cannot be read.
    """
    transformers = silent_transformers()
    if Path(name).is_dir():
        files = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
        if not any((Path(name) / file).is_file() for file in files):
            raise InputError(
                f"{name} has no tokenizer",
                seen=f"none of {', '.join(files)}",
                hint="copy tokenizer.json and tokenizer_config.json of the original model into the folder",
            )
    with _explained(name, "tokenizer"):
        return _local_first(transformers.AutoTokenizer, name)


def silent_transformers() -> Any:
    """The library, which from now on shows neither bars nor chatter.

    Raises
    ------
    InputError
        It is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise InputError("whole models need the transformers package", hint="pip install transformers") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _plain(head: str) -> str:
    words = {
        "ForSequenceClassification": "sequence classification",
        "ForQuestionAnswering": "question answering",
        "ForCausalLM": "causal language modelling",
    }
    return words.get(head, head)


def _local_first(loader: Any, name: str, **options: Any) -> Any:
    options["trust_remote_code"] = False
    # transformers prints a table of unmatched weights; what matters of it is reported above
    with contextlib.redirect_stdout(io.StringIO()):
        if Path(name).is_dir():
            return loader.from_pretrained(name, local_files_only=True, **options)
        try:
            return loader.from_pretrained(name, local_files_only=True, **options)
        except (OSError, ValueError):
            with patience():
                return loader.from_pretrained(name, **options)


def _read_config(name: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    if path.is_file():
        raise InputError(f"{name} is a file, the folder of a model is needed", hint=f"{path.parent}")
    if path.is_dir():
        return _parse_config(path / "config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        parent = path.parent
        folders = sorted(entry.parent.name for entry in parent.glob("*/config.json")) if parent.is_dir() else []
        seen = f"models in {parent.resolve()}: {', '.join(folders[:8])}" if folders else None
        if not parent.is_dir():
            seen = f"the folder {parent} does not exist"
        raise InputError(f"there is no folder {name}", seen=seen, hint="the folder of a model (it holds config.json)")
    from transformers.utils import cached_file

    with _explained(name, "model"):
        try:
            found = cached_file(name, "config.json", local_files_only=True)
        except OSError:
            with patience():
                found = cached_file(name, "config.json")
    return _parse_config(Path(str(found)))


def _parse_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        inside = sorted(entry.name for entry in path.parent.iterdir())
        raise InputError(
            f"{path.parent} is not a model: it has no config.json",
            seen=f"{', '.join(inside[:8])}" if inside else "an empty folder",
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON", seen=str(error)) from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{path} does not state a model_type", hint="a folder written by save_pretrained")
    return config


def _check_weights(folder: Path) -> None:
    if (folder / "model.safetensors").is_file():
        return
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{index} cannot be read", seen=f"{type(error).__name__}: {error}") from None
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise InputError(
                f"{folder}: part of the weights is missing",
                seen=f"{index.name} names {', '.join(missing)}, which is not there",
                hint="copy the missing file into the folder",
            )
        return
    pickles = [file for file in _PICKLES if (folder / file).exists()]
    if pickles:
        raise InputError(
            f"{folder}: its weights are not in safetensors, and other formats are not opened",
            seen=f"{', '.join(pickles)} (a pickle can run any code when it is read)",
            hint="if you trust it, convert it once: "
            "AutoModelForSequenceClassification.from_pretrained(OLD).save_pretrained(NEW)",
        )
    raise InputError(f"{folder} has a config.json but no weights", hint="model.safetensors is needed")


@contextlib.contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """Turn whatever transformers, safetensors, tokenizers and the hub raise into one message."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # each library below has its own kinds; all mean that the checkpoint cannot be opened
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if Path(name).is_dir():
            raise InputError(
                f"{name}: the {what} cannot be opened",
                seen=f"{type(error).__name__}: {text}",
                hint=_hint(what, type(error).__name__, text),
            ) from error
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        raise InputError(
            f"there is no folder {name} here, and the {what} could not be had from the Hugging Face hub",
            seen=("HF_HUB_OFFLINE is set; " if offline else "") + f"{type(error).__name__}: {text}",
            hint="check the name; without a connection pass the folder of a model",
        ) from error


def _hint(what: str, kind: str, text: str) -> str:
    if what == "tokenizer":
        return "tokenizer.json is damaged or from another version: copy it again from the original model"
    if "Safetensor" in kind or "safetensors" in text.lower() or "header" in text.lower():
        return "the weights file is damaged or cut short: copy it again (a Git LFS pointer is a text file of 130 bytes)"
    return "a model of a type that the installed transformers knows"
