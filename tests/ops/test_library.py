# SPDX-License-Identifier: Apache-2.0
"""Every op composes with torch: schema, fake kernel, ``torch.compile`` without graph breaks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pyprune.ops import library


def _samples(generator):
    x = torch.randn(20, 8, generator=generator)
    y = torch.randn(20, 3, generator=generator)
    keep = torch.rand(20, generator=generator) > 0.3
    gram = (x.T @ x).double() + torch.eye(8, dtype=torch.float64)
    weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 8, generator=generator) > 0.5
    inverse = torch.linalg.inv(gram)
    factor = torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1).contiguous()
    counts = torch.full((3,), 4, dtype=torch.int64)
    return {
        "gram": (torch.zeros(8, 8, dtype=torch.float64), x, keep),
        "cross_gram": (torch.zeros(3, 8), y, x, None),
        "matmul": (torch.zeros(3, 8, dtype=torch.float64), weight, gram, True, 0.5),
        "cholesky": (gram, 0.1, True, False, False),
        "symmetrise": (x[:8],),
        "rescale": (gram, weight[0].clone(), 0.1, 0.2, True),
        "admm_step": (x[:3].clone(), x[3:6].clone(), mask, weight.float(), gram.float() / 100, 1.5, 0.1),
        "masked_cg": (gram.float(), weight.float(), mask, weight.float(), 3, 0.0, None, x[:2].clone(), weight.float()),
        "select": (weight, 3, True),
        "nm": (weight, 2, 4),
        "masked_lstsq": (gram, weight, mask, 1e-14),
        "obs": (inverse, weight, counts, 4, 0, 0, True),
        "sparsegpt": (weight, factor, None, torch.tensor([12]), False, 0, 0, 128),
        "block_obs": (inverse, weight, torch.tensor([2]), 3, 3, 2),
    }


OPS = (
    "gram",
    "cross_gram",
    "matmul",
    "cholesky",
    "symmetrise",
    "rescale",
    "admm_step",
    "masked_cg",
    "select",
    "nm",
    "masked_lstsq",
    "obs",
    "block_obs",
    "sparsegpt",
)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, generator):
    op = getattr(torch.ops.pyprune, name).default
    torch.library.opcheck(op, _samples(generator)[name])


@pytest.mark.parametrize("name", OPS)
def test_compiles_without_graph_breaks(name, generator):
    op = getattr(torch.ops.pyprune, name).default
    arguments = _samples(generator)[name]

    def call(*args):
        result = op(*args)
        return args[0] if result is None else result

    wanted = call(*(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments))
    torch.compiler.reset()  # one function for all ops: each would count as a recompilation
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(*arguments)
    wanted, compiled = (r if isinstance(r, tuple) else (r,) for r in (wanted, compiled))
    assert all(torch.equal(a, b) for a, b in zip(wanted, compiled, strict=True))


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_exact_products(before):
    was = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        with library.exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == before
        with pytest.raises(KeyError), library.exact_products():
            raise KeyError
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(was)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has the older interface only")
@pytest.mark.parametrize("setting", ["torch.backends.fp32_precision", "torch.backends.cuda.matmul.fp32_precision"])
def test_exact_products_under_the_newer_interface(setting):
    program = (
        f"import torch\n{setting} = 'tf32'\nfrom pyprune.ops import library\n"
        "with library.exact_products(): print(torch.backends.cuda.matmul.fp32_precision)\n"
        "print(torch.backends.cuda.matmul.fp32_precision)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["ieee", "tf32"], done.stderr


def test_sample_for_every_registered_op():
    from pyprune import backends

    assert set(backends.operations()) == set(OPS)
