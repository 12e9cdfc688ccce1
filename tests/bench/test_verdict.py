# SPDX-License-Identifier: Apache-2.0
"""What is said of made-up numbers."""

from __future__ import annotations

from made_up import model_record, spmm_record

from pyprune.bench import verdict

SMALL, LARGE = (384, 384), (3072, 768)


def test_the_best_of_each_kind_is_what_counts() -> None:
    record = spmm_record((SMALL, 8, 0.9, {"pyprune": 2.0, "torch.linear": 8.0, "torch.mkl": 6.0, "scipy": 5.0}))
    (found,) = verdict.comparisons(record, "pyprune")
    assert found.dense == ("torch.mkl", 6.0)
    assert found.sparse == ("scipy", 5.0)
    assert (found.gain, found.lead) == (3.0, 2.5)


def test_other_kernels_are_rivals_of_each_other() -> None:
    record = spmm_record((SMALL, 8, 0.9, {"pyprune": 2.0, "mine": 1.0, "torch.linear": 8.0}))
    assert verdict.subjects(record) == ["pyprune", "mine"]
    assert verdict.comparisons(record, "pyprune")[0].sparse == ("mine", 1.0)
    assert verdict.comparisons(record, "mine")[0].sparse == ("pyprune", 2.0)


def test_slower_at_this_size_is_said() -> None:
    record = spmm_record(
        (SMALL, 1, 0.5, {"pyprune": 2.0, "torch.linear": 1.0, "scipy": 1.5}),
        (LARGE, 32, 0.5, {"pyprune": 1.0, "torch.linear": 3.0, "scipy": 12.0}),
        (LARGE, 128, 0.5, {"pyprune": 1.0, "torch.onednn": 4.0, "torch.linear": 5.0, "scipy": 8.0}),
        (LARGE, 8, 0.9, {"pyprune": 1.0, "torch.linear": 1.01}),
    )
    text = "\n".join(verdict.spmm(record))
    assert "50 % zeros: 3 x as fast as the best dense product in the middle of 3 cases" in text
    assert "from 0.5 x (384x384 with 1 token) to 4 x (3072x768 with 128 tokens)" in text
    assert "Slower than dense at this size: 384x384 with 1 token 0.5 x." in text
    assert "90 % zeros: as fast as the best dense product (3072x768 with 8 tokens)" in text
    assert text.count("Slower than dense") == 1
    assert "The best dense one was torch.linear in 3 and torch.onednn in 1." in text
    assert "ahead in 2 of 3 cases" in text
    assert "0.75 x as fast as scipy at the worst (50 % zeros, 384x384 with 1 token)" in text


def test_slower_but_known_to_be() -> None:
    own = {"status": "timed", "median": 2.0, "details": {"auto": "dense"}}
    cases = [
        (SMALL, 1, 0.5, {"pyprune": own, "torch.linear": 1.0}),
        (SMALL, 8, 0.5, {"pyprune": 2.0, "torch.linear": 1.0}),
        (SMALL, 32, 0.5, {"pyprune": own, "torch.linear": 3.0}),
    ]
    text = "\n".join(verdict.spmm(spmm_record(*cases)))
    assert "8 tokens 0.5 x; format auto stays dense in 1 of 2." in text


def test_many_slower_cases_are_counted() -> None:
    cases = [(SMALL, tokens, 0.5, {"pyprune": 2.0, "torch.linear": 1.0}) for tokens in range(1, 10)]
    text = "\n".join(verdict.spmm(spmm_record(*cases)))
    assert "and 3 more." in text


def test_what_was_not_timed_is_said() -> None:
    wrong = {"status": "wrong", "error": 0.5, "limit": 1e-4, "reason": "off by 0.5"}
    failed = {"status": "failed", "reason": "ImportError: no library"}
    skipped = {"status": "skipped", "reason": "float32 only"}
    record = spmm_record(
        (SMALL, 1, 0.5, {"pyprune": wrong, "torch.linear": 1.0, "scipy": failed, "torch.csr": skipped}),
        interrupted=True,
    )
    lines = verdict.spmm(record)
    assert "pyprune was timed in no case." in lines
    assert "pyprune gave a wrong result in 1 of 1 cases: off by 0.5" in lines
    assert "scipy failed in 1 of 1 cases: ImportError: no library" in lines
    assert not any("torch.csr" in line for line in lines)
    assert "interrupted" in lines[-1]


def test_no_rival_no_comparison() -> None:
    assert verdict.spmm(spmm_record((SMALL, 1, 0.5, {"pyprune": 1.0}))) == []


def test_models() -> None:
    record = model_record(
        (1, "real", {"dense float32": 0.020, "pruned as dense float32": 0.021, "pruned optimize float32": 0.030}),
        (
            32,
            128,
            {
                "dense float32": 1.0,
                "dense bfloat16": 0.4,
                "pruned as dense float32": 1.0,
                "pruned optimize float32": 0.2,
            },
        ),
    )
    record["models"]["dense"]["disk"] = {"folder": 1000, "linears": 400, "values": "F32"}
    record["models"]["pruned"]["disk"] = {"folder": 700, "linears": 60, "values": "F16"}
    entries = record["candidates"]
    for name, size, value in (
        ("dense float32", 1000, 0.9),
        ("pruned as dense float32", 900, 0.85),
        ("pruned optimize float32", 250, 0.86),
    ):
        entries[name]["memory"] = {"process": 5000 + size, "model": size}
        entries[name]["evaluation"] = {"metric": "accuracy", "value": value}
    text = "\n".join(verdict.model(record))
    assert "Batch 1, real sentences: the fastest pruned one is pruned as dense float32, 0.95 x as fast as" in text
    assert "Slower than the best dense one at this size: pruned as dense float32 0.95 x, pruned optimize" in text
    assert (
        "Batch 32, 128 tokens each: the fastest pruned one is pruned optimize float32, 2 x as fast as the fastest "
        "dense one, dense bfloat16; 5 x as fast as dense float32."
    ) in text
    assert "On disk the folder takes 0.70 x the bytes" in text
    assert "On disk the encoder's linear weights take 0.15 x" in text
    assert "stored as F32 in the dense one, as F16 in the pruned one" in text
    assert "In memory pruned optimize float32 takes 0.25 x the bytes of the smallest dense one." in text
    assert "Accuracy, dense: 0.9." in text
    assert "Accuracy, pruned: 0.85 to 0.86." in text


def test_models_without_sizes() -> None:
    wrong = {"status": "wrong", "error": None, "limit": 1e-3, "reason": "a logit is off by nan"}
    record = model_record((1, 8, {"dense float32": 1.0, "pruned optimize float32": wrong}))
    assert verdict.model(record) == [
        "pruned optimize float32 gave a wrong result in 1 of 1 cases: a logit is off by nan"
    ]
