# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch
from tolerances import ENCODER, relative

from pyprune import backends, ops
from pyprune.errors import InputError
from pyprune.ops.encoder import (
    ACTIVATIONS,
    DENSE_ROWS,
    LINEARS,
    PARTS,
    EncoderLayer,
    arrange,
    encoder_reference,
    flat_heads,
)

# sequences, length, hidden, inner, width, head: one token; nothing a multiple of anything; short sequences, many in a
# block; sequences over several blocks and more keys than are taken at once; heads of 32, 64 and odd sizes.
SIZES = [
    (1, 1, 32, 48, 32, 8),
    (3, 7, 20, 13, 15, 5),
    (70, 3, 37, 41, 33, 11),
    (5, 33, 64, 100, 64, 32),
    (2, 300, 70, 131, 128, 64),
    (1, 150, 8, 1, 1, 1),
    (0, 5, 8, 8, 8, 8),
    (3, 0, 8, 8, 8, 8),
]

# Channels of queries and of values by head: fewer and more values than queries, a head without queries, one of a single
# channel; as many of both, and unlike from head to head; no heads.
HEADS = [
    ((5, 9, 0, 1), (2, 16, 3, 7)),
    ((13, 1, 6), (13, 1, 6)),
    ((0, 0), (1, 6)),
    ((20,), (1,)),
    ((), ()),
]


def random_layer(hidden, inner, width, generator, *, format="dense", dtype=torch.float32, scale=1.5, heads=None):
    """Weights about `scale` times those that keep the size of what goes through."""
    query, value = heads or (None, None)
    values = width if value is None else sum(value)
    projected = 3 * width if query is None else 2 * sum(query) + values

    def weight(out, columns):
        dense = scale * torch.randn(out, columns, generator=generator) / max(columns, 1) ** 0.5
        if format == "dense" or not dense.numel():
            return arrange(ops.compress(dense, format="dense"))
        return ops.prepare(ops.compress(dense, torch.rand(out, columns, generator=generator) < 0.4, dtype=dtype))

    vectors = 0.3 * torch.randn(projected + inner + 6 * hidden, generator=generator)
    shapes = ((projected, hidden), (hidden, values), (inner, hidden), (hidden, inner))
    return EncoderLayer(*(weight(*shape) for shape in shapes), vectors, query, value)


def arguments(hidden, layers, keep, head, activation="gelu", eps=1e-12):
    """As the op itself takes them."""
    weights = [getattr(layer, name) for layer in layers for name in LINEARS]
    parts = [weight.parts[part] for weight in weights for part in PARTS[weight.format]]
    sizes = [size for weight in weights for size in (*weight.shape, *weight.geometry)]
    formats, vectors = [weight.format for weight in weights], [layer.vectors for layer in layers]
    heads = [size for layer in layers for size in flat_heads(layer, head)]
    return hidden, keep, parts, formats, sizes, heads, vectors, head, activation, eps


def error(hidden, layers, keep=None, *, head, activation="gelu", eps=1e-12):
    got = ops.encoder(hidden, layers, keep, head=head, activation=activation, eps=eps)
    wanted = encoder_reference(*arguments(hidden, layers, keep, head, activation, eps))
    return relative(got, wanted)


def test_one_height_of_tiles():
    assert backends.extension().dense_rows == DENSE_ROWS


@pytest.mark.parametrize("format", ["dense", "sparse"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_matches_float64(sizes, format, generator):
    sequences, length, hidden, inner, width, head = sizes
    layers = [random_layer(hidden, inner, width, generator, format=format) for _ in range(2)]
    x = 3 * torch.randn(sequences, length, hidden, generator=generator)
    assert error(x, layers, head=head) <= ENCODER
    keep = torch.rand(sequences, length, generator=generator) < 0.6
    keep[:1] = False  # a sequence of padding only
    assert error(x, layers, keep, head=head, eps=0.1) <= ENCODER


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_values_of_sixteen_bits(dtype, generator):
    layers = [random_layer(20, 70, 16, generator, format="sparse", dtype=dtype)]
    assert layers[0].up.dtype == dtype
    assert error(torch.randn(3, 20, 20, generator=generator), layers, head=8) <= ENCODER


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(activation, generator):
    layers = [random_layer(24, 60, 24, generator, scale=8.0)]  # inner sums of up to 40
    assert error(torch.randn(2, 30, 24, generator=generator), layers, head=6, activation=activation) <= ENCODER


def test_layers_of_different_widths(generator):
    layers = [random_layer(24, 60, 32, generator), random_layer(24, 7, 8, generator, format="sparse")]
    assert error(torch.randn(2, 50, 24, generator=generator), layers, head=8) <= ENCODER


@pytest.mark.parametrize("format", ["dense", "sparse"])
@pytest.mark.parametrize("inner", [37, 0])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads_of_different_widths(heads, inner, format, generator):
    """Between layers of whole heads, whose results lie elsewhere; scores are scaled by the dense width all the same."""
    layers = [random_layer(24, 5, 16, generator), random_layer(24, inner, 0, generator, format=format, heads=heads)]
    layers.append(random_layer(24, 5, 8, generator))
    x = torch.randn(5, 90, 24, generator=generator)
    keep = torch.rand(5, 90, generator=generator) < 0.6
    assert error(x, layers, head=8) <= ENCODER
    assert error(x, layers, keep, head=8) <= ENCODER
    alone = ops.encoder(x[2:3], layers, keep[2:3], head=8)
    assert torch.equal(ops.encoder(x, layers, keep, head=8)[2:3], alone)


def test_scores_that_would_overflow(generator):
    """Their exp is inf; keys come in rising order, so that the running maximum moves every time."""
    layer = random_layer(16, 16, 16, generator, scale=0.0)
    project = torch.zeros(48, 16)
    project[:16], project[16:32], project[32:] = 60 * torch.eye(16), 60 * torch.eye(16), torch.eye(16)
    layers = [
        EncoderLayer(arrange(ops.compress(project, format="dense")), layer.output, layer.up, layer.down, layer.vectors)
    ]
    x = torch.linspace(0.1, 3, 300)[None, :, None] * torch.randn(1, 1, 16, generator=generator)
    assert error(x, layers, head=16) <= ENCODER


def test_a_sequence_depends_on_nothing_else(generator, monkeypatch):
    """The same bits alone, among others, with padding before it, and for any number of threads."""
    layers = [random_layer(40, 90, 32, generator, format=format) for format in ("dense", "sparse")]
    alone = torch.randn(1, 150, 40, generator=generator)
    wanted = ops.encoder(alone, layers, head=8)
    among = torch.randn(4, 170, 40, generator=generator)
    among[2, 13:163] = alone[0]
    keep = torch.rand(4, 170, generator=generator) < 0.5
    keep[2] = False
    keep[2, 13:163] = True
    for threads in ("1", "2", "3", "40"):
        monkeypatch.setenv("PYPRUNE_NUM_THREADS", threads)
        assert torch.equal(ops.encoder(alone, layers, head=8), wanted)
        assert torch.equal(ops.encoder(among, layers, keep, head=8)[2:3, 13:163], wanted)


def test_padding_is_never_read(generator):
    layers = [random_layer(20, 30, 16, generator)]
    x, keep = torch.randn(3, 9, 20, generator=generator), torch.rand(3, 9, generator=generator) < 0.5
    wanted = ops.encoder(x, layers, keep, head=8)
    x[~keep] = float("nan")
    assert torch.equal(ops.encoder(x, layers, keep, head=8), wanted)
    assert bool((wanted[~keep] == 0).all())


def test_nan_is_handed_on(generator):
    x = torch.randn(2, 40, 16, generator=generator)
    x[0, 5, 3] = float("nan")
    got = ops.encoder(x, [random_layer(16, 20, 16, generator)], head=8)
    assert bool(got[0].isnan().all())


def test_not_contiguous(generator):
    layers = [random_layer(20, 30, 16, generator)]
    x, keep = torch.randn(9, 3, 20, generator=generator), torch.rand(9, 3, generator=generator) < 0.5
    wanted = ops.encoder(x.transpose(0, 1).contiguous(), layers, keep.T.contiguous(), head=8)
    assert torch.equal(ops.encoder(x.transpose(0, 1), layers, keep.T, head=8), wanted)


def test_errors_say_what_was_seen(generator):
    layer, x = random_layer(16, 20, 16, generator), torch.randn(2, 5, 16)
    with pytest.raises(InputError, match=r"float64 \[2, 5, 16\]"):
        ops.encoder(x.double(), [layer], head=8)
    with pytest.raises(InputError, match="keep must be bool"):
        ops.encoder(x, [layer], torch.ones(2, 5), head=8)
    with pytest.raises(InputError, match="unknown activation 'tanh'"):
        ops.encoder(x, [layer], head=8, activation="tanh")
    with pytest.raises(InputError, match="heads do not fit"):
        ops.encoder(x, [layer], head=5)
    uneven = random_layer(16, 20, 0, generator, heads=((3, 2), (4, 1)))
    for heads, wrong in (
        (((3, 2), (5,)), "every head has channels"),
        (((6, -1), (4, 1)), "every head has channels"),
        (((3, 3), (4, 1)), "project has the wrong shape"),
        (((2, 2), (4, 3)), "output has the wrong shape"),
    ):
        with pytest.raises(InputError, match=wrong):
            ops.encoder(x, [dataclasses.replace(uneven, query=heads[0], value=heads[1])], head=8)
    with pytest.raises(InputError, match=r"project has the wrong shape\n.*\[48, 17\]\n.*\[48, 16\]"):
        ops.encoder(torch.randn(2, 5, 17), [layer], head=8)
    plain = EncoderLayer(layer.project, layer.output, ops.compress(torch.ones(20, 16)), layer.down, layer.vectors)
    with pytest.raises(InputError, match="up is stored as 'bitmask'"):
        ops.encoder(x, [plain], head=8)
    with pytest.raises(InputError, match="no gradient"):
        ops.encoder(x.requires_grad_(), [layer], head=8)
