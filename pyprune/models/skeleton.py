# SPDX-License-Identifier: Apache-2.0
"""A model of names and shapes only, whose blocks get their weights one at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError, NumericsError
from pyprune.models.adapters import Adapter, adapter_for
from pyprune.models.weights import Source, Spec


def read_config(path: Path) -> Any:
    """The transformers config of a folder or of a ``.json`` file.

    Raises
    ------
    InputError
        There is none, or transformers does not know its type.
    """
    import transformers

    file = path / "config.json" if path.is_dir() else path
    try:
        config = transformers.AutoConfig.for_model(**json.loads(file.read_text(encoding="utf-8")))
        config._name_or_path = str(path)
        return config
    except OSError as error:
        raise InputError(f"there is no config at {path}", seen=error.strerror, hint="a folder or file") from None
    except Exception as error:  # each class checks its settings in a way of its own
        raise InputError(f"{file} is not the config of a model", seen=str(error)[:300]) from None


def model_class(config: Any) -> Any:
    """The class of transformers that a config was saved with.

    Raises
    ------
    InputError
        It names none.
    """
    import transformers

    names = getattr(config, "architectures", None)
    first = names[0] if isinstance(names, list) and names else None
    found = getattr(transformers, first, None) if isinstance(first, str) else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise InputError(
            f"{config._name_or_path} does not say which model class it holds",
            seen=f"architectures {names}"[:200],
            hint="transformers.AutoModelFor...from_pretrained(path)",
        )
    return found


class Skeleton:
    """A causal language model on the meta device, and the source of its weights.

    Parameters
    ----------
    config
        Of transformers.
    source : Source
    device : torch.device or str
        Where blocks are made.

    Raises
    ------
    InputError
        Not a causal language model of a known family, or the source does not hold its weights.
    """

    def __init__(self, config: Any, source: Source, device: torch.device | str = "cpu") -> None:
        import transformers

        architecture = (getattr(config, "architectures", None) or ["ForCausalLM"])[0]
        if not architecture.endswith("ForCausalLM"):
            raise InputError(
                "only causal language models are pruned layer by layer",
                seen=architecture,
                hint="pyprune.prune (without --streaming) for models with other heads",
            )
        try:
            with torch.device("meta"):
                model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            raise InputError("no causal language model has this config", seen=str(error).splitlines()[0]) from None
        self.model = model.eval()
        self.adapter: Adapter = adapter_for(model)
        self.adapter.check_config(config)
        self.source, self.device = source, torch.device(device)
        # Tied weights have one name, the first.
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.specs: dict[str, Spec] = {name: source.spec(name, like) for name, like in self.parameters.items()}
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._meta = self.adapter.blocks(model)
        base: Any = getattr(model, "base_model", model)
        if hasattr(base, "rotary_emb"):
            # Its buffers are computed from the config and stored nowhere.
            base.rotary_emb = type(base.rotary_emb)(config).to(self.device)
        left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
        if left:
            raise InputError("buffers that no checkpoint holds", seen=", ".join(left[:4]))

    def __len__(self) -> int:
        return len(self._meta)

    def read(self, name: str) -> Tensor:
        """A weight in its stored type; NaN and inf raise :class:`NumericsError`."""
        value = self.source.read(name, self.parameters[name])
        # isfinite would take as much memory again; extremes pass NaN on.
        extremes = torch.stack(torch.aminmax(value)) if value.numel() else value
        if not bool(torch.isfinite(extremes).all()):
            raise NumericsError(
                f"{name} holds NaN or inf", hint="the checkpoint is damaged or was trained to divergence; use another"
            )
        return value

    @contextmanager
    def embedding(self) -> Iterator[nn.Module]:
        """Within it the model can run up to its first block."""
        filled: list[tuple[nn.Module, str, Any]] = []
        try:
            for module in self.adapter.embedding_modules(self.model):
                for owner in module.modules():
                    for key, parameter in owner._parameters.items():
                        if parameter is not None:
                            filled.append((owner, key, parameter))
                            value = self.read(self._names[id(parameter)]).float().to(self.device)
                            owner._parameters[key] = nn.Parameter(value, requires_grad=False)
            yield self.model
        finally:
            for owner, key, parameter in filled:
                owner._parameters[key] = parameter

    def open(self, index: int) -> tuple[nn.Module, nn.Module]:
        """A block in float32, twice: to stay dense, and to be pruned."""
        block = copy.deepcopy(self._meta[index]).float().to_empty(device=self.device)
        prefix = self.adapter.block_name(self.model, index)
        with torch.no_grad():
            for name, parameter in block.named_parameters():
                parameter.copy_(self.read(f"{prefix}.{name}"))
        return block, copy.deepcopy(block)
