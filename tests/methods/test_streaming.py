# SPDX-License-Identifier: Apache-2.0
"""Layer by layer: the bits of the model in memory, what is written, resuming, and the stated ceiling of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import DECODERS, build_batches, build_model
from torch import Tensor

import pyprune
from pyprune.errors import InputError, NumericsError
from pyprune.methods import JournalError
from pyprune.result import load_masks, load_report

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 66,
}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny model as ``save_pretrained`` does."""

    def call(family: str = "llama", dtype: torch.dtype = torch.float32, **config: Any) -> Path:
        model: Any = build_model(family, "lm", **config).to(dtype)
        model.save_pretrained(tmp_path / family)
        return tmp_path / family

    return call


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "shape.json").write_text(json.dumps(CONFIG))
    return tmp_path / "shape.json"


def _timeless(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in layer.items() if key != "seconds"} for layer in layers]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "pyprune.json"}


@pytest.mark.parametrize(
    ("family", "dtype", "tied"),
    [(family, torch.float32, False) for family in DECODERS]
    + [("llama", torch.bfloat16, True), ("opt", torch.float16, True)],
)
def test_the_bits_of_the_model_in_memory(
    saved: Callable[..., Path], tmp_path: Path, family: str, dtype: torch.dtype, tied: bool
) -> None:
    folder, output = saved(family, dtype, tie_word_embeddings=tied), tmp_path / "pruned"
    want = pyprune.prune(pyprune_open(folder), build_batches())
    state = torch.get_rng_state()
    got = pyprune.prune_streaming(folder, build_batches(), output=output, shard_bytes=20_000, spill=tmp_path / "spill")
    assert torch.equal(state, torch.get_rng_state())
    assert got.path == output
    loaded = pyprune_open(output)
    one, other = want.model.state_dict(), loaded.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name].dtype == dtype
        assert torch.equal(value, other[name]), name
    masks = load_masks(output)
    assert list(masks) == list(want.masks)
    assert all(torch.equal(masks[name], want.masks[name]) for name in masks)
    assert _timeless(got.report["layers"]) == _timeless(want.report["layers"])
    for key in ("counts", "sparsity", "mean_error", "weighted_error", "data"):
        assert got.report[key] == want.report[key], key
    assert load_report(output) == got.report
    assert str(dtype).removeprefix("torch.") in got.report["notes"][-1]
    assert len(list(output.glob("model-*.safetensors"))) > 1
    assert not list(tmp_path.glob("*.journal"))
    words = loaded.get_input_embeddings().weight
    assert (loaded.get_output_embeddings().weight is words) == tied


def pyprune_open(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")  # transformers 4 would take float32


class _Killed(KeyboardInterrupt):
    pass


class _Progress:
    """Stops the run after some steps."""

    def __init__(self, stop_after: int) -> None:
        self.left = stop_after
        self.notes: list[str] = []

    def start(self, total: int, description: str) -> None: ...

    def advance(self, description: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise _Killed

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self) -> None: ...


@pytest.mark.parametrize("steps", [10, 21])
def test_a_killed_run_goes_on_with_the_same_bytes(config: Path, tmp_path: Path, steps: int) -> None:
    options: dict[str, Any] = {"random_weights": True, "samples": 6, "max_length": 9}
    whole = pyprune.prune_streaming(config, output=tmp_path / "whole", **options)
    progress = _Progress(steps)
    with pytest.raises(_Killed):
        pyprune.prune_streaming(config, output=tmp_path / "parts", progress=progress, **options)
    assert any("the model is never whole in memory" in note for note in progress.notes)
    assert not (tmp_path / "parts").exists()
    with pytest.raises(JournalError, match="already holds"):
        pyprune.prune_streaming(config, output=tmp_path / "parts", **options)
    with pytest.raises(JournalError, match="the model differs"):
        pyprune.prune_streaming(config, output=tmp_path / "parts", resume=True, seed=4, **options)
    resumed = pyprune.prune_streaming(config, output=tmp_path / "parts", resume=True, **options)
    assert resumed.report["resumed_blocks"] == steps // 7
    assert whole.path is not None
    assert resumed.path is not None
    assert _files(whole.path) == _files(resumed.path)
    assert resumed.report["counts"] == whole.report["counts"]


def test_random_weights_follow_the_seed(config: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"random_weights": True, "samples": 4, "max_length": 8, "sparsity": 0.0}
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        result = pyprune.prune_streaming(config, output=tmp_path / name, method="magnitude", seed=seed, **options)
        assert result.report["data"]["tokens"] == 4 * 8
        states.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    weight = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(states[0][weight], states[2][weight])
    assert float(states[0][weight].std()) == pytest.approx(0.02, rel=0.1)
    assert pyprune.load(tmp_path / "a").config.num_hidden_layers == 3


def test_a_dry_run_states_a_shape_that_would_not_fit(tmp_path: Path) -> None:
    large = CONFIG | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps(large | {"num_attention_heads": 32, "num_key_value_heads": 32}))
    result = pyprune.prune_streaming(
        tmp_path, random_weights=True, dry_run=True, pattern="2:4", samples=4, max_length=64
    )
    assert result.path is None
    plan = result.report["plan"]
    assert (len(plan["layers"]), plan["weights"], plan["kept"]) == (224, 6_476_005_376, 3_238_002_688)
    assert plan["streaming"]
    assert plan["memory"]["total"] < 4 * plan["weights"]
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_wrong_requests(saved: Callable[..., Path], config: Path, tmp_path: Path) -> None:
    folder, batches = saved(), build_batches(1)
    output = tmp_path / "pruned"

    def shape(**changes: Any) -> Path:
        path = tmp_path / f"{'-'.join(changes)}-{changes.get('model_type')}.json"
        path.write_text(json.dumps(CONFIG | changes))
        return path

    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (folder, None, {}, "needs text"),
        (folder, batches, {"output": None}, "written while it is pruned"),
        (folder, batches, {"method": "best"}, "unknown method"),
        (folder, batches, {"pattern": "2:5"}, r"model\.layers\.0\.self_attn\.q_proj.*2:5"),
        (tmp_path / "nowhere", batches, {}, "there is no config"),
        (config, batches, {}, r"no model\.safetensors"),
        (shape(architectures=["LlamaForSequenceClassification"]), None, {"random_weights": True}, "only causal"),
        (shape(model_type="bert"), None, {"random_weights": True}, "bert"),
        (shape(model_type="nothing"), None, {"random_weights": True}, "is not the config"),
    ]
    for source, data, options, message in cases:
        with pytest.raises(InputError, match=message):
            pyprune.prune_streaming(source, data, **{"output": output, **options})
    assert not output.exists()


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_weights_that_are_not_finite(saved: Callable[..., Path], tmp_path: Path, name: str) -> None:
    folder = saved()
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericsError, match=name.replace(".", r"\.")):
        pyprune.prune_streaming(folder, build_batches(1), output=tmp_path / "pruned")


# In a process of its own, because the peak of a process cannot be reset.
_RUN = """
import json, sys
import torch
torch.set_num_threads(1)
import pyprune
warm, source, output = sys.argv[1:]
options = dict(method="magnitude", samples=2, max_length=16)
pyprune.prune_streaming(warm, output=output + ".warm", random_weights=True, **options)
tokens = torch.arange(32).reshape(2, 16)
print(json.dumps(pyprune.prune_streaming(source, [{"input_ids": tokens}], output=output, **options).report["memory"]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_the_ceiling_is_kept(config: Path, tmp_path: Path) -> None:
    # Half of the weights in the embeddings, half in the head, hardly any in one block: 280 MB in all.
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 64000}
    (tmp_path / "large.json").write_text(json.dumps(CONFIG | sizes | {"tie_word_embeddings": False}))
    options: dict[str, Any] = {"random_weights": True, "method": "magnitude", "samples": 1, "max_length": 8}
    made = pyprune.prune_streaming(tmp_path / "large.json", output=tmp_path / "made", **options)
    model = 4 * made.report["counts"]["all_parameters"]["total"]
    arguments = [str(config), str(made.path), str(tmp_path / "pruned")]
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout.splitlines()[-1])
    used = memory["peak"] - memory["resident_before"]
    assert used <= memory["planned"] < 0.95 * model, memory
    assert used >= 0.3 * memory["planned"]
