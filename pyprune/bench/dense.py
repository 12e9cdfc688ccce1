# SPDX-License-Identifier: Apache-2.0
"""Dense rivals: the ways of torch, and the runtimes that people deploy instead of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyprune.bench.registry import Answer, Candidate, Prepared, Problem

_BATCHES = "another runtime is compared in float32 only"


def _size(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


def _linear(problem: Problem) -> Answer:
    if problem.dtype == torch.int8:
        return None, "torch.int8 is the int8 one"
    weight = problem.weight
    return Prepared(lambda x: functional.linear(x, weight), _size(weight))


def _float32(problem: Problem) -> Answer:
    """What a float32 model does: the yardstick of the smaller dtypes, where a processor has no arithmetic for them."""
    if problem.dtype == torch.float32:
        return None, "that is torch.linear"
    weight = problem.weight.float()
    return Prepared(lambda x: functional.linear(x, weight), _size(weight), takes=torch.float32)


def _onednn(problem: Problem) -> Answer:
    """The weight reordered once for this number of tokens, as torch.compile does when it freezes a model."""
    if problem.dtype == torch.int8:
        return None, "torch.int8 is the int8 one"
    if problem.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None, "oneDNN has no bfloat16 on this processor"
    packed = torch.ops.mkldnn._reorder_linear_weight(problem.weight, problem.tokens)
    multiply = torch.ops.mkldnn._linear_pointwise
    return Prepared(lambda x: multiply(x, packed, None, "none", [], ""), _size(problem.weight))


def _mkl(problem: Problem) -> Answer:
    """The same by MKL's packed product."""
    if problem.dtype != torch.float32:
        return None, "float32 only"
    weight, tokens = problem.weight, problem.tokens
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, tokens)
    multiply = torch.ops.mkl._mkl_linear
    return Prepared(lambda x: multiply(x, packed, weight, None, tokens), _size(weight))


def _int8(problem: Problem) -> Answer:
    """Dynamic quantisation: weights int8 by rows, inputs quantised at every call."""
    if problem.dtype != torch.int8:
        return None, "int8 only"
    scale = problem.weight.abs().amax(1).double() / 127
    scale[scale == 0] = 1.0
    zero = torch.zeros(len(scale), dtype=torch.int64)
    quantised = torch.quantize_per_channel(problem.weight, scale, zero, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantised, None)
    multiply = torch.ops.quantized.linear_dynamic
    # 7 bits for the inputs where products of 8 bits could overflow the 16-bit sums of this processor
    narrow = torch.backends.quantized.engine in ("x86", "fbgemm") and not torch.cpu._is_vnni_supported()
    return Prepared(lambda x: multiply(x, packed, narrow), problem.weight.numel())


def _onnxruntime(problem: Problem) -> Answer:
    if problem.dtype != torch.float32:
        return None, _BATCHES
    import numpy
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    out, columns = problem.weight.shape
    weight = numpy_helper.from_array(numpy.ascontiguousarray(problem.weight.numpy().T), "w")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [problem.tokens, size])
        for name, size in (("x", columns), ("y", out))
    ]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "linear", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads would take the others' cores
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Prepared(lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), _size(problem.weight))


def _openvino(problem: Problem) -> Answer:
    if problem.dtype != torch.float32:
        return None, _BATCHES
    import numpy
    import openvino
    from openvino import opset13

    out, columns = problem.weight.shape
    x = opset13.parameter([problem.tokens, columns], numpy.float32, name="x")
    product = opset13.matmul(x, opset13.constant(problem.weight.numpy()), False, True)
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # the calling thread runs the other candidates too
    }
    compiled = openvino.Core().compile_model(openvino.Model([product], [x], f"linear {out}"), "CPU", settings)
    request = compiled.create_infer_request()
    # the result lies in the request's own memory and is overwritten by the next call: nothing is copied
    return Prepared(
        lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0]),
        _size(problem.weight),
    )


CANDIDATES = (
    Candidate("torch.linear", "dense", _linear),
    Candidate("torch.onednn", "dense", _onednn),
    Candidate("torch.mkl", "dense", _mkl),
    Candidate("torch.int8", "dense", _int8),
    Candidate("torch.float32", "dense", _float32),
    Candidate("onnxruntime", "dense", _onnxruntime, ("onnxruntime", "onnx")),
    Candidate("openvino", "dense", _openvino, ("openvino",)),
)
