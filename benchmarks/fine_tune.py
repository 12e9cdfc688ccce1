# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a model for a task that there is no checkpoint of: a classifier of texts, or answers to questions.

    python benchmarks/fine_tune.py ENCODER train.jsonl OUTPUT --evaluate test.jsonl --words 100 --precision bfloat16

starts from the encoder of ENCODER, whatever its head, and writes to OUTPUT the checkpoint and `fine-tuned.json`:
settings and what it is worth. With `--words` texts are cut to so many, and written to `train.jsonl` and
`evaluate.jsonl` there. Where rows have answers, as in SQuAD's layout, they are what is learned.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pyprune.files import write_atomically
from pyprune.methods.trained import train_prune
from pyprune.progress import for_terminal
from pyprune.tasks import evaluate, load_texts
from pyprune.tasks.loading import Examples
from pyprune.training.loop import Training


def cut(source: str, words: int, path: Path) -> Examples:
    """The first words of every text, written to a file that is then read."""
    found = load_texts(source, purpose="evaluation")
    labels = found.labels or ()
    lines = (
        json.dumps({"text": " ".join(text.split()[:words]), "label": label}) + "\n"
        for text, label in zip(found.texts, labels, strict=True)
    )
    write_atomically(path, "".join(lines).encode(), "the rows")
    return load_texts(str(path), purpose="evaluation")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune, judge and save."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint whose encoder is taken")
    parser.add_argument("data", help="labelled rows to train on")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--evaluate", required=True, help="labelled rows to judge by, once, at the end")
    parser.add_argument("--words", type=int, help="of every text, the first ones (default: all)")
    parser.add_argument("--labels", type=int, default=2, help="classes (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a row in training")
    parser.add_argument("--precision", default="float32", help="of products in training")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    sources = {"train": options.data, "evaluate": options.evaluate}
    if options.words is None:
        rows, judged = (load_texts(source, purpose="evaluation") for source in sources.values())
    else:
        rows, judged = (cut(s, options.words, options.output / f"{name}.jsonl") for name, s in sources.items())
    kind, more = "AutoModelForSequenceClassification", {"num_labels": options.labels}
    if rows.answers is not None:
        kind, more = "AutoModelForQuestionAnswering", {}
    torch.manual_seed(options.seed)  # of the new head
    model: Any = getattr(transformers, kind).from_pretrained(options.model, dtype=torch.float32, **more)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    training = Training(
        epochs=options.epochs,
        batch_size=options.batch_size,
        rate=options.rate,
        precision=options.precision,
        freeze_embeddings=True,
        seed=options.seed,
    )
    with for_terminal() as progress:
        train_prune(
            model,
            rows,
            tokenizer=tokenizer,
            method="imp",
            sparsity=0.0,
            training=training,
            max_length=options.max_length,
            inplace=True,
            progress=progress,
        )
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    found = evaluate(model, judged, tokenizer=tokenizer)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    write_atomically(
        options.output / "fine-tuned.json",
        json.dumps({**settings, "accuracy": found.to_dict()}, indent=1, default=str).encode() + b"\n",
        "settings and outcome",
    )
    print(found.describe())


if __name__ == "__main__":
    main()
