# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import pyprune
from pyprune import backends
from pyprune.errors import BackendError, InputError


def python(program, **environment):
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=dict(inherited, **environment),
        capture_output=True,
        text=True,
        check=False,
    )


def test_compiled_kernels_come_first():
    for op in backends.operations():
        assert backends.choose(op, "cpu").backend == "cpp", op


def test_every_rejection_has_a_reason():
    for op in backends.operations():
        rejected = backends.choose(op, "cpu").rejected
        assert {entry.backend for entry in rejected} == {"cuda", "triton", "torch", "reference"}
        assert all(entry.reason for entry in rejected)


def test_forcing_a_backend(monkeypatch):
    monkeypatch.setenv(backends.FORCE, "reference")
    assert backends.choose("gram", "cpu").backend == "reference"


def test_forcing_an_unavailable_backend_says_why(monkeypatch):
    monkeypatch.setenv(backends.FORCE, "triton")
    with pytest.raises(BackendError, match="runs on cuda tensors, not on cpu"):
        pyprune.ops.gram(torch.ones(2, 2))


@pytest.fixture
def with_a_gpu(monkeypatch):
    """The table as it is where a GPU is at hand and the extension was built with CUDA."""
    monkeypatch.setattr(backends, "unavailable", lambda backend: None)
    backends._choose.cache_clear()
    yield
    backends._choose.cache_clear()


# Those for which torch calls the vendor's library, or makes the passes over memory that a kernel would.
VENDOR_OPS = ("matmul", "cholesky", "rescale", "symmetrise", "admm_step", "select", "nm")


def test_gpu_ops(monkeypatch, with_a_gpu):
    for op in VENDOR_OPS:
        assert "torch" in backends.implementations(op), op
    assert backends.choose("matmul", "cuda").backend == "torch"
    assert backends.choose("admm_step", "cuda").backend == "triton"
    assert backends.choose("cross_gram", "cuda").backend == "triton"
    assert backends.choose("gram", "cuda").backend == "triton"  # tensor cores
    assert backends.choose("block_obs", "cuda").backend == "cuda"


@pytest.mark.parametrize("forced", ["cuda", "triton"])
def test_a_forced_gpu_backend_leaves_what_it_has_not_to_others(monkeypatch, with_a_gpu, forced):
    monkeypatch.setenv(backends.FORCE, forced)
    assert backends.choose("gram", "cuda").backend == forced
    assert backends.choose("matmul", "cuda").backend == "torch"
    assert backends.choose("cross_gram", "cuda").backend == "triton"
    assert backends.choose("swap", "cuda").backend == "triton"
    monkeypatch.setitem(backends._TABLE, "alone", {"reference": len})
    with pytest.raises(BackendError, match="no kernel there yet"):  # never the float64 reference in silence
        backends.choose("alone", "cuda")


def test_forced_torch_is_torch_alone(monkeypatch):
    monkeypatch.setenv(backends.FORCE, "torch")
    assert backends.choose("matmul", "cpu").backend == "torch"
    assert backends.choose("gram", "cpu").backend == "reference"


def test_forcing_an_unknown_backend(monkeypatch):
    monkeypatch.setenv(backends.FORCE, "fortran")
    with pytest.raises(BackendError, match=r"fortran.*\n.*cuda, triton, cpp, torch, reference"):
        pyprune.ops.gram(torch.ones(2, 2))


def test_bad_thread_count(monkeypatch):
    monkeypatch.setenv("PYPRUNE_NUM_THREADS", "many")
    with pytest.raises(BackendError, match="PYPRUNE_NUM_THREADS"):
        pyprune.ops.gram(torch.ones(2, 2))


def test_describe_is_complete():
    info = backends.describe()
    assert info["pyprune"] == pyprune.__version__
    assert info["extension"]["isa"] in info["extension"]["isas"]
    assert set(info["ops"]) == set(backends.operations())
    assert info["ops"]["gram"]["cpu"]["chosen"] == "cpp"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_peak(dtype):
    # A loop that the compiler has dropped would be thousands of times faster than any core.
    assert 1e6 < backends.peak(dtype, 1, rounds=2) < 4e12


def test_peak_of_another_type():
    with pytest.raises(InputError, match="bfloat16"):
        backends.peak(torch.bfloat16, 1)


def test_unknown_instruction_set():
    program = (
        "import torch, pyprune\ntry: pyprune.ops.gram(torch.ones(2, 2))\nexcept pyprune.BackendError as e: print(e)"
    )
    done = python(program, PYPRUNE_CPU_ISA="mmx")
    assert "PYPRUNE_CPU_ISA=mmx is not available" in done.stdout, done.stderr
    assert "baseline" in done.stdout


def test_one_openmp_runtime():
    # Two pools of threads on the same cores would be slower than either.
    runtimes = backends.describe()["openmp_runtimes"]
    assert len({os.path.basename(path) for path in runtimes}) <= 1, runtimes


def test_waiting_threads_give_their_core_away():
    program = "{first}; import os; import pyprune; print(os.environ.get('GOMP_SPINCOUNT'))"
    for first, environment, seen in (
        ("pass", {}, "1000"),
        ("pass", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("pass", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("import torch", {}, "None"),
    ):
        done = python(program.format(first=first), **environment)
        assert done.stdout.split() == [seen], (first, environment, done.stderr)


def test_without_the_extension_the_reference_serves_and_warns_once():
    program = (
        "import sys; sys.modules['pyprune._C'] = None\n"
        "import torch, pyprune\n"
        "for _ in range(3): pyprune.ops.gram(torch.ones(2, 2))\n"
        "p = pyprune.LayerProblem(torch.ones(2, 4), torch.eye(4))\n"
        "print(pyprune.backends.choose('gram', 'cpu').backend, pyprune.solve(p, pyprune.NM(2, 4)).error)\n"
    )
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["reference", "0.5"]
    assert done.stderr.count("RuntimeWarning") == 1
    assert "pip install" in done.stderr


def test_import_is_light():
    program = (
        "import sys, pyprune\n"
        "heavy = ('transformers', 'datasets', 'textattack', 'rich', 'matplotlib', 'triton', 'pandas', 'pyarrow')\n"
        "import torch; del sys.modules['torch']\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    baseline = python("import sys, torch; print([n for n in ('triton', 'rich', 'pandas') if n in sys.modules])")
    done = python(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == baseline.stdout.strip()
