# SPDX-License-Identifier: Apache-2.0
"""Every op composes with torch: schema, fake kernel, ``torch.compile`` without graph breaks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from samples import OPS, samples

from pyprune.ops import library


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, generator):
    op = getattr(torch.ops.pyprune, name).default
    torch.library.opcheck(op, samples(generator)[name])


@pytest.mark.parametrize("name", OPS)
def test_compiles_without_graph_breaks(name, generator):
    op = getattr(torch.ops.pyprune, name).default
    arguments = samples(generator)[name]

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
