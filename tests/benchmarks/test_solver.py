# SPDX-License-Identifier: Apache-2.0
"""The benchmark of one matrix: its problems, its rivals, its lines of results, its figure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from solver import candidates, measure, plot, problems, public, records, rivals, run
from tiny_checkpoint import build_checkpoint
from torch import Tensor

from pyprune import NM, LayerProblem, Unstructured, solve
from pyprune.errors import InputError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
HALF = Unstructured(0.5, scope="layer")
PATTERNS = [HALF, Unstructured(0.7, scope="row"), NM(2, 4)]


@pytest.fixture(scope="module")
def problem() -> LayerProblem:
    return problems.synthetic("bert", 96, 160)


# Problems


@pytest.mark.parametrize("name", [*problems.QUICK, "bert.48x96", "llm.96x48"])
def test_synthetic_problems(name: str) -> None:
    first, second = (next(problems.make([name], problems.Checkpoint())) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.gram, second.gram)
    assert first.name == name
    assert first.shape == tuple(map(int, name.partition(".")[2].split("x")))
    assert first.weight.dtype == torch.float32
    values = torch.linalg.eigvalsh(first.gram)
    assert values[0] > 0
    diagonal = first.gram.diagonal()
    assert diagonal.max() > 10 * diagonal.median()  # outlier features


def test_samples_have_the_covariance_they_were_drawn_from() -> None:
    exact = problems.synthetic("bert", 8, 40)
    drawn = problems.synthetic("bert", 8, 40, tokens=40_000)
    assert float((drawn.gram - exact.gram).norm() / exact.gram.norm()) < 0.05


def test_real_problems(tmp_path: Path) -> None:
    """The gram is that of all real tokens of the sentences in float64: the text holds exactly as many as asked for."""
    from transformers import AutoModel, AutoTokenizer

    folder = build_checkpoint(tmp_path / "tiny")
    sentences = ["good film", "a bad , bad film", "the good", "bad"]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences) + "\n")
    model, tokenizer = AutoModel.from_pretrained(folder).float().eval(), AutoTokenizer.from_pretrained(folder)
    rows: list[Tensor] = []
    layer = model.encoder.layer[1].intermediate.dense
    with torch.no_grad(), layer.register_forward_pre_hook(lambda _, args: rows.append(args[0][0].double())):
        for sentence in sentences:
            model(**tokenizer(sentence, return_tensors="pt"))
    x = torch.cat(rows)
    checkpoint = problems.Checkpoint(str(folder), str(text), "tiny", block=1, tokens=len(x))
    found = dict(zip(("fc1", "q"), problems.make(["tiny.fc1", "tiny.q"], checkpoint), strict=True))
    torch.testing.assert_close(found["fc1"].gram, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(found["fc1"].weight, layer.weight.detach())
    assert found["q"].name == "tiny.q"
    with pytest.raises(InputError, match="too short"):
        problems.real(problems.Checkpoint(str(folder), str(text), block=1, tokens=len(x) + 1))
    with pytest.raises(InputError, match="no block 7"):
        problems.real(problems.Checkpoint(str(folder), str(text), block=7, tokens=4))


def test_a_cut_sentence_counts_in_part(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "tiny")
    text = tmp_path / "text.txt"
    text.write_text("good film\nbad film\n")
    whole, cut = (
        problems.real(problems.Checkpoint(str(folder), str(text), block=0, tokens=n), ["o"])["o"].gram for n in (8, 7)
    )
    last = 8 * whole - 7 * cut  # the one token that was left out: its outer product
    assert torch.linalg.matrix_rank(last, atol=1e-5 * float(last.diagonal().sum()), hermitian=True) == 1


@pytest.mark.parametrize("name", ["bert.12", "gpt.8x8", "minilm.k", "bert.0x8", "q"])
def test_unknown_problems(name: str) -> None:
    with pytest.raises(InputError, match="unknown problem"):
        list(problems.make([name], problems.Checkpoint()))


# Rivals


KNOWN = [(name, pattern) for name in rivals.SOLVERS for pattern in PATTERNS if rivals.refuses(name, pattern) is None]


@pytest.mark.parametrize(("name", "pattern"), KNOWN, ids=[f"{name}, {pattern.describe()}" for name, pattern in KNOWN])
def test_rivals_have_the_pattern(problem: LayerProblem, name: str, pattern: Any) -> None:
    weight = rivals.SOLVERS[name](problem.weight, problem.gram, pattern)
    wanted = pattern
    if isinstance(pattern, Unstructured) and name in rivals.ROW_ONLY:
        wanted = Unstructured(pattern.sparsity, scope="row")
    elif isinstance(pattern, Unstructured) and "sparsegpt" in name:
        wanted = Unstructured(pattern.sparsity, scope="layer")
    assert wanted.holds(weight != 0)


@pytest.mark.parametrize("pattern", [HALF, NM(2, 4)], ids=lambda pattern: pattern.describe())
def test_sparsegpt_in_torch_is_sparsegpt(problem: LayerProblem, pattern: Any) -> None:
    weight = rivals.sparsegpt(problem.weight, problem.gram, pattern)
    ours = solve(problem, pattern, "sparsegpt", damping=rivals.DAMPING)
    assert problem.error(weight) == pytest.approx(ours.error, rel=5e-3)
    assert float(((weight != 0) == ours.mask).double().mean()) > 0.99


def test_obs_in_torch_is_obs(problem: LayerProblem) -> None:
    weight = rivals.rank1_obs(problem.weight, problem.gram, Unstructured(0.5))
    ours = solve(problem, Unstructured(0.5), "obs", damping=rivals.DAMPING)
    assert problem.error(weight) == pytest.approx(ours.error, rel=5e-3)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.describe())
def test_admm_beats_sparsegpt(problem: LayerProblem, pattern: Any) -> None:
    error = problem.error(rivals.admm(problem.weight, problem.gram, pattern))
    assert error < 0.9 * solve(problem, pattern, "sparsegpt").error


def row_by_row(gram: Tensor, rhs: Tensor, mask: Tensor) -> Tensor:
    """The restricted least squares of every row in float64."""
    result = torch.zeros_like(rhs)
    for row, keep in enumerate(mask):
        result[row, keep] = torch.linalg.solve(gram[keep][:, keep], rhs[row, keep])
    return result


def test_least_squares_on_a_mask(problem: LayerProblem) -> None:
    mask = rivals.keep_largest(problem.weight.abs(), HALF)
    gram = problem.gram + 1e-2 * problem.gram.diagonal().mean() * torch.eye(len(problem.gram), dtype=torch.float64)
    rhs = problem.weight.double() @ gram
    exact = row_by_row(gram, rhs, mask)
    direct = rivals.batched_cholesky(problem.gram, rhs, mask)
    torch.testing.assert_close(direct.double(), exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
    gathered = rivals.gathered_cholesky(problem.gram, rhs, mask, dtype=torch.float64)
    torch.testing.assert_close(gathered, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))
    norm = gram.diagonal().sqrt()
    scaled, target = gram / norm / norm.unsqueeze(1), rhs / norm
    start = torch.zeros_like(exact)
    iterated = rivals.conjugate_gradients(scaled, target, mask, start, iterations=200) / norm
    torch.testing.assert_close(iterated, exact, rtol=1e-6, atol=1e-8)


# Candidates and public code

STAND_IN = """
import torch
from quant import halve

class SparseGPT:
    def __init__(self, layer):
        self.layer = layer

    def fasterprune(self, sparsity, prunen=0, prunem=0):
        assert self.H.dtype == torch.float32
        torch.cuda.synchronize()
        print("error 1.5")
        print("the Hessian is odd")
        kept = self.layer.weight.data.abs() > self.layer.weight.data.abs().median()
        self.layer.weight.data = halve(self.layer.weight.data) * 2 * kept
        del self.H
"""


def test_a_public_solver_runs_from_its_folder(tmp_path: Path, problem: LayerProblem, capsys: Any) -> None:
    (tmp_path / "sparsegpt.py").write_text(STAND_IN)
    (tmp_path / "quant.py").write_text("def halve(x):\n    return x / 2\n")
    synchronize, path = torch.cuda.synchronize, list(sys.path)
    (candidate,) = candidates.choose({"sparsegpt": public.sparsegpt(tmp_path)}, ["public.*"], [])
    for _ in range(2):  # what it destroys is its own
        found = candidate.prepare(problem, HALF)()
        assert torch.equal(found.weight, rivals.magnitude(problem.weight, problem.gram, HALF))
    assert found.notes == ("the Hessian is odd",)
    assert capsys.readouterr().out == ""
    assert torch.cuda.synchronize is synchronize
    assert sys.path == path
    assert "quant" not in sys.modules
    with pytest.raises(InputError, match=r"has no alps\.py"):
        public.alps(tmp_path)


def test_choice_of_candidates(tmp_path: Path) -> None:
    names = {candidate.name for candidate in candidates.choose({}, [], [])}
    assert {"pyprune.sparsegpt", "pyprune.sparsegpt+refit", "torch.admm", "torch.sparsegpt"} <= names
    (tmp_path / "sparsegpt.py").write_text("class SparseGPT: ...")
    with_public = candidates.choose({"sparsegpt": public.sparsegpt(tmp_path)}, [], [])
    assert "torch.sparsegpt" not in {candidate.name for candidate in with_public}
    assert [c.name for c in candidates.choose({}, ["torch.wan*"], [])] == ["torch.wanda"]
    with pytest.raises(InputError, match="no solver is called 'nothing'"):
        candidates.choose({}, ["nothing"], [])
    (slow,) = candidates.choose({}, ["torch.obs"], [])
    assert slow.refusal(HALF, 4096, 4096) is not None
    assert slow.refusal(HALF, 4096, 4096, patient=True) is None


def test_peak_memory_is_what_a_call_holds() -> None:
    size = 64 << 20

    def call() -> int:
        block = torch.zeros(size // 4)
        return int(block.sum())

    result, seconds, peak = measure.with_peak(call)
    assert result == 0
    assert seconds > 0
    if peak is None:
        pytest.skip("this system has no high-water mark of memory")
    assert 0.98 * size < peak < 1.2 * size


# Lines and figure


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("solver") / "results.jsonl"
    command = [
        sys.executable,
        str(BENCHMARKS / "solver" / "run.py"),
        "--quick",
        "--threads",
        "1",
        "--output",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
    return path


def test_lines(results: Path) -> None:
    lines = [json.loads(row) for row in results.read_text().splitlines()]
    names = {candidate.name for candidate in candidates.choose({}, [], [])}
    assert {line["solver"] for line in lines} == names
    assert {(line["problem"], line["pattern"]) for line in lines} == {
        (problem, pattern) for problem in problems.QUICK for pattern in ("0.5", "2:4")
    }
    assert len({records.key(line) for line in lines}) == len(lines)
    for line in lines:
        assert line["failed"] is None, line
        assert len(line["samples"]) == 1
        assert line["seconds"] == line["samples"][0] > 0
        assert 0 < line["error"] < 1
        assert line["sparsity"] == pytest.approx(0.5, abs=0.01)
        assert line["machine"]["torch"] == torch.__version__
        assert line["scope"] in ({None} if line["pattern"] == "2:4" else {"row", "layer"})


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `run.main` sets is set back."""
    monkeypatch.setenv("PYPRUNE_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_resume(results: Path, tmp_path: Path, one_thread: None) -> None:
    rows = results.read_text().splitlines(keepends=True)
    path = tmp_path / "cut.jsonl"
    path.write_text("".join(rows[:-1]) + rows[-1][:40])
    options = ["--quick", "--threads", "1", "--output", str(path)]
    with pytest.raises(SystemExit, match="--resume"):
        run.main(options)
    run.main([*options, "--resume"])
    again = path.read_text().splitlines(keepends=True)
    assert again[:-1] == rows[:-1]
    assert records.key(json.loads(again[-1])) == records.key(json.loads(rows[-1]))


def test_bad_flags(tmp_path: Path, one_thread: None) -> None:
    for flags, message in (
        (["--solvers", "nothing"], "no solver is called"),
        (["--problems", "nothing.1x1"], "unknown problem"),
        (["--patterns", "2"], "outside 0 to 1"),
        (["--alps", str(tmp_path)], r"has no alps.py"),
    ):
        with pytest.raises(SystemExit) as caught:
            run.main(["--quick", "--threads", "1", *flags])
        assert message in str(caught.value)


def line_of(solver: str, error: float, seconds: float, problem: str = "a", **more: Any) -> records.Line:
    return {
        **{"problem": problem, "pattern": "0.5", "solver": solver, "threads": 1, "rows": 8, "columns": 8},
        **{"error": error, "seconds": seconds, "failed": None, "slow": False, "peak_bytes": None},
        **{"machine": {"cpu": "some", "torch": "2"}, **more},
    }


def test_ratios_and_front() -> None:
    lines = [
        line_of("torch.sparsegpt", 0.2, 2.0),
        line_of("public.sparsegpt", 0.1, 1.0),
        line_of("pyprune.obs", 0.05, 4.0),
        line_of("public.sparsegpt", 0.4, 2.0, problem="b"),
        line_of("pyprune.obs", 0.1, 32.0, problem="b"),
        line_of("pyprune.wanda", 0.3, 0.5),
    ]
    ratios = {ratio.line["solver"]: ratio for ratio in records.beside_sparsegpt(lines)["a", "0.5"]}
    assert (ratios["pyprune.obs"].error, ratios["pyprune.obs"].seconds) == (0.5, 4.0)
    assert ratios["torch.sparsegpt"].seconds == 2.0  # the public one decides
    marks = {mark.solver: mark for mark in plot.panels(lines)["0.5"]}
    assert marks["pyprune.obs"].time == pytest.approx(8.0)
    assert marks["pyprune.obs"].error == pytest.approx(0.125**0.5)
    assert marks["pyprune.obs"].whole
    assert not marks["pyprune.wanda"].whole
    assert [mark.solver for mark in plot.front(list(marks.values()))] == ["public.sparsegpt", "pyprune.obs"]
    with pytest.raises(InputError, match="different numbers of threads"):
        records.beside_sparsegpt([*lines, line_of("pyprune.obs", 0.1, 1.0, threads=2)])
    assert "some words" in records.table([*lines, line_of("public.alps", 0.1, 1.0, failed="some words")])
    with pytest.raises(InputError, match="nothing to draw"):
        plot.panels([line_of("pyprune.obs", 0.1, 1.0)])


def test_figure(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the figure, is not installed")
    files = [tmp_path / name for name in ("one.svg", "two.svg")]
    for file in files:
        plot.main([str(results), "--output", str(file)])
    text = files[0].read_text()
    assert text == files[1].read_text()
    assert "pyprune.obs" in text
    assert "2:4" in text
