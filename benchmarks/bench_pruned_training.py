# SPDX-License-Identifier: Apache-2.0
"""Pruning while training, from a pre-trained encoder with a fine-tuned teacher: accuracy over methods and seeds.

Every run has the same number of steps on rows that its seed draws, for whatever method. Rows of the training file that
no run trains on are held out: candidates of randomized masks are chosen by them. The development file is judged by
once, at the end. Finished runs are lines of the file of results; those that are there already are left out, so that a
run that was stopped goes on. Cells are those of `pruned_training_cells.py`.

    python benchmarks/bench_pruned_training.py --encoder ENCODER --teacher TEACHER --train train.tsv \
        --evaluate dev.tsv --name sst2 --keep FOLDER
    python benchmarks/bench_pruned_training.py --tables --name sst2

Without flags: the model and sentences of the demo, whose classifier is then encoder and teacher.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pruned_training_tables as tables
import torch
from common import RESULTS, machine, set_threads
from pruned_training_cells import CELLS, LEVELS, TURNS, Cell
from torch import nn

from pyprune.commands.checkpoints import open_model, open_tokenizer
from pyprune.demo import model_folder, test_file, train_file
from pyprune.methods.randomized import Randomized, prune_randomized
from pyprune.methods.train_parts import rows_of
from pyprune.methods.trained import train_prune
from pyprune.tasks import evaluate, load_texts, without_rows
from pyprune.tasks.evaluate import answers_questions
from pyprune.training import PUBLISHED, MaskDraw, PruningLoss
from pyprune.training.loop import Training
from pyprune.training.rows import Rows

HELD_OUT = 1000
QUICK = ("grain 5 %", "cap-m from sizes 10 %", "randomized")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Without flags: the model and sentences of the demo."""
    model = str(model_folder())
    parser.add_argument("--encoder", default=model, help="pre-trained, not fine-tuned (default: the demo's classifier)")
    parser.add_argument("--teacher", default=model, help="fine-tuned for the task, with the encoder's vocabulary")
    parser.add_argument("--train", default=str(train_file()), help="labelled rows")
    parser.add_argument("--evaluate", default=str(test_file()), help="labelled rows to report on")
    parser.add_argument("--name", default="reviews", help="of the task: part of the name of the results")
    parser.add_argument("--rows", type=int, default=3200, help="training rows of a run (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="rows to report on (default: all)")
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over them (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2e-4, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=48, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--precision", default="bfloat16", help="of products in training (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--cells", nargs="+", help="names of cells (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for models of the first seed, and of runs under way")
    parser.add_argument("--quick", action="store_true", help="a few cells on a few rows, nothing written: does it run?")
    parser.add_argument("--tables", action="store_true", help="train nothing: print tables of the results")


class Task:
    """Rows of a seed, held-out rows, rows to report on, and models to start from."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.teacher = open_model(options.teacher)
        self.tokenizer = open_tokenizer(options.teacher)
        every = load_texts(options.train)
        count = 16 if options.quick else min(HELD_OUT, len(every) // 4)
        held = sorted(random.Random(1).sample(range(len(every)), count))
        self.train = without_rows(every, held)
        self.held_out = without_rows(every, sorted(set(range(len(every))) - set(held)))
        limit = 16 if options.quick else options.limit
        self.evaluated = load_texts(options.evaluate, limit=limit, purpose="evaluation")

    def rows(self, seed: int) -> Rows:
        """Training rows that a seed draws."""
        drawn = set(random.Random(1000 + seed).sample(range(len(self.train)), self.options.rows))
        left = without_rows(self.train, [row for row in range(len(self.train)) if row not in drawn])
        return rows_of(left, self.teacher, self.tokenizer, self.options.max_length)[0]

    def student(self, seed: int) -> Any:
        """The pre-trained encoder with a head that a seed draws."""
        import transformers

        config = self.teacher.config
        torch.manual_seed(seed)
        labels = {"num_labels": config.num_labels, "id2label": config.id2label, "label2id": config.label2id}
        kind = "AutoModelForQuestionAnswering" if answers_questions(self.teacher) else None
        loader = getattr(transformers, kind or "AutoModelForSequenceClassification")
        return loader.from_pretrained(self.options.encoder, dtype=torch.float32, **({} if kind else labels))

    def score(self, model: nn.Module) -> float:
        """What a model is worth on the rows held out."""
        return evaluate(model, self.held_out, tokenizer=self.tokenizer, max_length=self.options.max_length).value

    def judged(self, model: nn.Module) -> dict[str, Any]:
        """Accuracy on the rows to report on (of answers: exact matches); which are right, in hexadecimal digits."""
        length = max(self.options.max_length, 128)
        found = evaluate(model, self.evaluated, tokenizer=self.tokenizer, max_length=length)
        right = "".join("1" if one else "0" for one in found.right)
        more = {} if found.metric == "accuracy" else {found.metric: found.value}
        return {
            "accuracy": found.accuracy,
            **more,
            "right": f"{int(right, 2):0{-(-len(right) // 4)}x}",
            "total": found.total,
        }


def main() -> None:
    """Train what is missing, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.epochs, options.seeds, options.cells = 40, 1.0, (0,), QUICK
    known = sorted(RESULTS.glob(f"*-pruned-training-{options.name}.jsonl"))
    written = tempfile.TemporaryDirectory() if options.quick else None
    if written is not None:
        known = [Path(written.name) / "results.jsonl"]
    path = known[-1] if known else RESULTS / f"{datetime.date.today()}-pruned-training-{options.name}.jsonl"
    if options.tables:
        print(tables.text(path, CELLS, LEVELS))
        return
    facts = machine()
    set_threads(options.threads)
    print(
        f"training: pyprune {facts['pyprune']} on {facts['cpu']}, {options.threads} threads, torch {torch.__version__}"
    )
    task = Task(options)
    head = {name: getattr(options, name) for name in ("rows", "epochs", "rate", "max_length", "precision")}
    if path.exists():
        before = json.loads(path.read_text().splitlines()[0])["settings"]
        if before != head:
            parser.error(f"{path.name} has runs with other settings: {before}")
    else:
        judged = task.judged(task.teacher)
        append(path, {"name": options.name, "machine": facts, "settings": head, "teacher": judged})
    for turn in TURNS:
        for seed in options.seeds:
            for cell in turn:
                wanted = not options.cells or cell.name in options.cells
                if wanted and (cell.name, seed) not in tables.finished(path):
                    run(task, cell, seed, path)


def run(task: Task, cell: Cell, seed: int, path: Path) -> None:
    """Train one cell and write its line, or a line for each of its levels."""
    begin, processor = time.monotonic(), time.process_time()
    work = levels if cell.method == "randomized" else one
    for sparsity, found in work(task, cell, seed):
        line = {
            "date": str(datetime.date.today()),
            "group": cell.group,
            "cell": cell.name,
            "seed": seed,
            "sparsity": sparsity,
            **found,
            "seconds": round(time.monotonic() - begin, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
        }
        append(path, line)
        print(f"{cell.name}, seed {seed}: {100 * line['accuracy']:.1f} %, {line['processor_seconds']} s", flush=True)


def one(task: Task, cell: Cell, seed: int) -> list[tuple[float, dict[str, Any]]]:
    """A run of `train_prune`."""
    options = task.options
    contrast: Any = {"terms": cell.contrast} if cell.contrast else False
    result = train_prune(
        task.student(seed),
        task.rows(seed),
        tokenizer=task.tokenizer,
        method=cell.method,
        sparsity=cell.sparsity,
        teacher=task.teacher,
        training=replace(training(options, options.epochs, seed), **cell.training),
        options=cell.options,
        contrast=contrast,
        inplace=True,
        **cell.losses,
    )
    if options.keep is not None and seed == 0 and result.units is not None:
        result.save(options.keep / f"{options.name}-{cell.name}".replace(" ", "-").replace("-%", ""))
    found = {"left": 1.0 - result.report["sparsity"]["linear_weights"], "losses": result.report["training"]["losses"]}
    if result.units is not None:
        found |= {"structure": structure(result.units)}
    return [(cell.sparsity, {**found, **task.judged(result.model if result.units is None else result.compact())})]


def structure(units: Any) -> dict[str, float]:
    """Heads that are left and their mean numbers of channels, neurons a layer, layers with an attention."""
    heads = sum(len(layer.heads) for layer in units.layers)
    channels = {
        name: sum(len(head) for layer in units.layers for head in getattr(layer, name)) / max(heads, 1)
        for name in ("query", "value")
    }
    return {
        "heads": heads,
        **channels,
        "neurons": sum(len(layer.neurons) for layer in units.layers) / len(units.layers),
        "attentions": sum(bool(layer.heads) for layer in units.layers),
    }


def levels(task: Task, cell: Cell, seed: int) -> list[tuple[float, dict[str, Any]]]:
    """A run over levels of sparsity, from the teacher; each level's model is judged once."""
    options, given = task.options, cell.options

    def loss(teacher: nn.Module | None) -> PruningLoss:
        # The attentions of the published loss would need an attention that gives its probabilities, for all runs.
        return PruningLoss(teacher, hard=0.0, soft=1.0, hidden=1.0, logits=PUBLISHED["randomized"])

    found: list[tuple[float, dict[str, Any]]] = []

    def judge(done: Randomized) -> None:
        level = done.levels[-1]
        left = sum(int(mask.sum()) for mask in done.masks.values()) / sum(mask.numel() for mask in done.masks.values())
        tried = {"scores": level.scores, "best": level.best, "left": left}
        found.append((level.sparsity, {**tried, **task.judged(done.model)}))

    prune_randomized(
        copy.deepcopy(task.teacher).requires_grad_(True),
        task.rows(seed),
        task.score,
        teacher=task.teacher,
        levels=LEVELS,
        candidates=given["candidates"],
        draw=MaskDraw("magnitude") if given["candidates"] == 1 else None,
        short=training(options, given["short"], seed),
        long=training(options, given["long"], seed),
        loss=loss,
        seed=seed,
        folder=None if options.keep is None else options.keep / f"{options.name}-{cell.name}-{seed}",
        watch=judge,
    )
    return found


def training(options: argparse.Namespace, epochs: float, seed: int) -> Training:
    """Settings that all runs share."""
    return Training(epochs=epochs, rate=options.rate, precision=options.precision, freeze_embeddings=True, seed=seed)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to the results."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
