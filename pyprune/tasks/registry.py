# SPDX-License-Identifier: Apache-2.0
"""Known tasks: where the data is, which columns hold text and label, which number is reported."""

from __future__ import annotations

from dataclasses import dataclass

from pyprune.errors import InputError

METRICS = ("accuracy", "matthews", "f1")


@dataclass(frozen=True)
class Task:
    """One public data set.

    Parameters
    ----------
    name : str
        The name used on the command line.
    hub, config : str
        Repository on the Hugging Face hub and its configuration ("" for none).
    text, text_pair, label : str
        Column names in that data set ("" where there is no such column).
    train, evaluation : str
        Split to calibrate on, and split to evaluate on (the labelled one: GLUE's test split has no labels).
    labels : tuple of str
        Meaning of label 0, 1, ... in the data; () where answers are looked for instead.
    metric : str
        ``"accuracy"``, ``"matthews"`` or ``"f1"``: what the task is usually reported in.
    skip_unlabelled : bool
        Rows without a label (-1) belong to the data set and are left out by everyone (SNLI).
    """

    name: str
    hub: str
    config: str = ""
    text: str = "text"
    text_pair: str = ""
    label: str = "label"
    train: str = "train"
    evaluation: str = "test"
    labels: tuple[str, ...] = ("negative", "positive")
    metric: str = "accuracy"
    skip_unlabelled: bool = False

    def judges(self, head: str) -> bool:
        """Whether a model with this head (``"ForSequenceClassification"`` ...) can be judged by it."""
        return (head == "ForQuestionAnswering") != bool(self.labels)


_NLI = ("entailment", "neutral", "contradiction")
_RTE = ("entailment", "not_entailment")


def _glue(name: str, text: str, text_pair: str, labels: tuple[str, ...], metric: str = "accuracy") -> Task:
    evaluation = "validation_matched" if name == "mnli" else "validation"
    return Task(name, "nyu-mll/glue", name, text, text_pair, "label", "train", evaluation, labels, metric)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("sst2", "sentence", "", ("negative", "positive")),
        _glue("cola", "sentence", "", ("unacceptable", "acceptable"), "matthews"),
        _glue("mrpc", "sentence1", "sentence2", ("not_equivalent", "equivalent"), "f1"),
        _glue("qqp", "question1", "question2", ("not_duplicate", "duplicate"), "f1"),
        _glue("mnli", "premise", "hypothesis", _NLI),
        _glue("qnli", "question", "sentence", _RTE),
        _glue("rte", "sentence1", "sentence2", _RTE),
        Task("snli", "stanfordnlp/snli", "", "premise", "hypothesis", labels=_NLI, skip_unlabelled=True),
        Task("ag_news", "fancyzhx/ag_news", labels=("World", "Sports", "Business", "Sci/Tech")),
        Task("imdb", "stanfordnlp/imdb", labels=("neg", "pos")),
        Task("yelp_polarity", "fancyzhx/yelp_polarity", labels=("1", "2")),
        Task("rotten_tomatoes", "cornell-movie-review-data/rotten_tomatoes", labels=("neg", "pos")),
        Task(
            "squad", "rajpurkar/squad", "", "question", "context", "", evaluation="validation", labels=(), metric="f1"
        ),
    )
}


def find_task(name: str) -> Task:
    """Find the task of this name.

    Raises
    ------
    InputError
        No such task; the message lists those known.
    """
    task = TASKS.get(name.lower().replace("-", "_"))
    if task is None:
        raise InputError(
            f"there is no task called {name!r}",
            hint=f"one of {', '.join(TASKS)}; for your own data pass the file instead of a task",
        )
    return task
