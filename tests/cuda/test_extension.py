# SPDX-License-Identifier: Apache-2.0
"""The CUDA part inside the compiled extension: quiet without a GPU, right with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyprune import backends


@pytest.fixture
def extension() -> Any:
    if (reason := backends.unavailable("cpp")) is not None:
        pytest.skip(reason)
    module = backends.extension()
    if not module.build_info()["cuda"]:
        pytest.skip("pyprune was built without CUDA (no nvcc, or PYPRUNE_CUDA=OFF)")
    return module


def call(extension: Any, out: torch.Tensor, x: torch.Tensor, keep: torch.Tensor | None, stream: int = 0) -> None:
    numbers = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
    extension.gram_cuda(
        out.data_ptr(),
        x.data_ptr(),
        numbers[x.dtype],
        x.shape[0],
        x.shape[1],
        x.stride(0),
        0 if keep is None else keep.data_ptr(),
        stream,
    )


def test_without_a_device_the_call_says_why(extension: Any) -> None:
    if extension.build_info()["cuda_devices"]:
        pytest.skip("there is a CUDA device")
    x = torch.ones(3, 2)
    out = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"gram: .*\(cudaError"):
        call(extension, out, x, None)
    assert not out.any()


@pytest.mark.parametrize(
    ("op", "ask"),
    [
        ("masked_lstsq", lambda extension: extension.masked_factor_on_chip()),
        ("obs", lambda extension: extension.obs_plan_cuda(0, 32, 32, 8, 0, 0)),
    ],
)
def test_without_a_device_there_is_no_plan(extension: Any, op: str, ask: Callable[[Any], Any]) -> None:
    if extension.build_info()["cuda_devices"]:
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match=rf"{op}: .*\(cudaError"):
        ask(extension)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernel is emulated on the host only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "columns"), [(1, 1), (17, 31), (257, 131), (1000, 384), (600, 1500)])
def test_against_float64(extension: Any, dtype: torch.dtype, tokens: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, columns + 3, generator=generator).to("cuda", dtype)[:, :columns]
    keep = (torch.rand(tokens, generator=generator) < 0.7).to("cuda")
    x[~keep] = torch.nan
    out = torch.full((columns, columns), 0.25, dtype=torch.float64, device="cuda")
    call(extension, out, x, keep, torch.cuda.current_stream().cuda_stream)
    real = x[keep].double()
    scale = (real.abs().T @ real.abs()).clamp_min(1e-3)
    assert ((out - 0.25 - real.T @ real).abs() / scale).max().item() <= 16 * 2.0**-24
    assert torch.equal(out, out.T)
