# SPDX-License-Identifier: Apache-2.0
"""Prune the demo's model by two methods at two sparsities, and say in one sentence what came of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pyprune.demo import files
from pyprune.progress import Silent
from pyprune.tasks import Evaluation, evaluate, load_texts
from pyprune.tasks.metrics import compare

METHODS = ("akr", "sparsegpt")
SPARSITIES = (0.5, 0.7)
NAMES = {"akr": "AKR", "sparsegpt": "SparseGPT"}
# Sentences to calibrate on. About 16 real tokens each: more than the widest layer has inputs (1,536) many times over.
SAMPLES = 1024
QUICK_SAMPLES = 256


def run_demo(
    model: Any,
    tokenizer: Any,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    output: Path | None = None,
    progress: Silent | None = None,
) -> dict[str, Any]:
    """Run the demo.

    Parameters
    ----------
    model, tokenizer
        Those of :func:`pyprune.demo.model_folder`, in float32. The model is not changed.
    samples : int
        Calibration sentences, drawn from the training file; their labels are not looked at.
    seed : int
        Of that draw.
    output : Path, optional
        Folder in which each pruned model is saved, as ``akr-50``, ``sparsegpt-50``, ...
    progress : optional

    Returns
    -------
    dict
        JSON-able: ``dense`` (evaluation), ``runs`` (one record for each method and sparsity), ``comparisons`` of AKR
        with SparseGPT for each sparsity, ``conclusion`` (a sentence), ``seconds``.
    """
    from pyprune.methods import prune

    begin = time.perf_counter()
    calibration = load_texts(files.train_file())
    held_out = load_texts(files.test_file())
    dense = evaluate(model, held_out, tokenizer=tokenizer, progress=progress)
    runs: list[dict[str, Any]] = []
    judged: dict[tuple[str, float], Evaluation] = {}
    for sparsity in SPARSITIES:
        for method in METHODS:
            result = prune(
                model,
                calibration.inputs,
                tokenizer=tokenizer,
                method=method,
                sparsity=sparsity,
                samples=samples,
                seed=seed,
                progress=progress,
            )
            judgement = evaluate(result.model, held_out, tokenizer=tokenizer, progress=progress)
            judged[method, sparsity] = judgement
            report = result.report
            record: dict[str, Any] = {
                "method": method,
                "sparsity": sparsity,
                "zeros": report["sparsity"],
                "evaluation": judgement.to_dict(),
                "against_dense": compare(dense, judgement),
                "mean_error": report["mean_error"],
                "seconds": report["seconds"]["total"],
                "saved": None,
            }
            if output is not None:
                report["evaluation"] = {"dense": dense.to_dict(), "pruned": judgement.to_dict()}
                record["saved"] = str(result.save(output / f"{method}-{100 * sparsity:g}"))
            runs.append(record)
    comparisons = [
        {"sparsity": sparsity, **compare(judged["akr", sparsity], judged["sparsegpt", sparsity])}
        for sparsity in SPARSITIES
    ]
    return {
        "model": {"name": "reviews-minilm", "parameters": sum(p.numel() for p in model.parameters())},
        "calibration": {"source": files.train_file().name, "sentences": samples, "seed": seed, "labels_used": False},
        "dense": dense.to_dict(),
        "runs": runs,
        "comparisons": comparisons,
        "conclusion": conclude(dense, judged, SPARSITIES[-1]),
        "seconds": time.perf_counter() - begin,
    }


def conclude(dense: Evaluation, judged: dict[tuple[str, float], Evaluation], sparsity: float) -> str:
    """Say what the numbers show at the highest sparsity, and no more.

    Two models are compared on the sentences where they differ (sign test): accuracies on a few hundred sentences
    alone are too coarse.
    """
    akr, other = judged["akr", sparsity], judged["sparsegpt", sparsity]
    paired = compare(akr, other)
    first, second = paired["only_first_right"], paired["only_second_right"]
    text = (
        f"With {100 * sparsity:g} % of the encoder's weights gone and no retraining, AKR "
        f"{_change(dense, akr)} and SparseGPT {_change(dense, other)}; "
    )
    if first == second:
        return text + "where their answers differ they are right equally often: here they are level."
    leader = "AKR" if first > second else "SparseGPT"
    where = (
        f"of the {first + second} sentences that only one of them gets right, {leader} has {max(first, second)} "
        f"(sign test p = {paired['sign_test_p']:.2g})"
    )
    verdict = "more than chance gives" if paired["sign_test_p"] < 0.05 else "which chance could give too"
    return f"{text}{where}, {verdict}."


def _change(dense: Evaluation, pruned: Evaluation) -> str:
    points = 100 * (pruned.accuracy - dense.accuracy)
    if abs(points) < 0.005:
        return "keeps all of its accuracy"
    verb = "loses" if points < 0 else "gains"
    return f"{verb} {abs(points):.1f} points of accuracy ({100 * pruned.accuracy:.1f} %)"
