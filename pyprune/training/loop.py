# SPDX-License-Identifier: Apache-2.0
"""A plain training loop whose every step is a pure function of the seed, so that a resumed run has the same bits."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyprune.errors import InputError, NumericsError
from pyprune.training.checkpoint import Checkpoints as Checkpoints  # part of what a training takes
from pyprune.training.choice import Choice
from pyprune.training.distillation import PruningLoss
from pyprune.training.pruning import Pruner, State
from pyprune.training.rows import NUMBERS, Rows
from pyprune.training.schedules import steps_of

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Progress(Protocol):
    """What a long call reports to (:mod:`pyprune.progress` has one for terminals)."""

    def start(self, total: int, description: str) -> None: ...

    def advance(self, description: str) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class Training:
    """Settings of a training.

    Parameters
    ----------
    epochs : float
    batch_size : int
    rate : float
        Highest learning rate, of AdamW.
    warm_up : float
        Part of the steps in which the rate rises from zero; afterwards it falls to zero in a line.
    decay : float
        Weight decay; biases and norms have none.
    clip : float
        Norm of all gradients at most; 0: as they are.
    accumulate : int
        Batches a step.
    precision : {"float32", "bfloat16", "float16"}
        Of products in the forward pass; weights, gradients and moments are float32.
    freeze_embeddings : bool
    seed : int
        Of the order of rows and of dropout.
    rounds : int
        The rate rises and falls anew in each of so many equal parts of the run.
    """

    epochs: float = 3.0
    batch_size: int = 32
    rate: float = 3e-5
    warm_up: float = 0.1
    decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    precision: str = "float32"
    freeze_embeddings: bool = False
    seed: int = 0
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}", hint=", ".join(_PRECISIONS))
        if self.rounds < 1:
            raise InputError("a training has at least one round", seen=str(self.rounds))
        if not self.rate > 0 or not 0 <= self.warm_up < 1 or self.decay < 0 or self.clip < 0:
            raise InputError(
                "a training needs a rate above 0, a warm-up from 0 to below 1, and no negative decay or clip",
                seen=f"rate {self.rate}, warm_up {self.warm_up}, decay {self.decay}, clip {self.clip}",
            )

    def steps(self, rows: int) -> int:
        """Optimizer steps on so many rows."""
        return steps_of(self.epochs, rows, self.batch_size, self.accumulate)

    def share(self, step: int, steps: int) -> float:
        """The learning rate of a step as a part of the highest."""
        if self.rounds > 1:
            starts = [steps * index // self.rounds for index in range(self.rounds + 1)]
            index = bisect.bisect_right(starts, step) - 1
            step, steps = step - starts[index], starts[index + 1] - starts[index]
        rising = round(self.warm_up * steps)
        return (step + 1) / (rising + 1) if step < rising else (steps - step) / max(steps - rising, 1)


@dataclass
class Trained:
    """What became of a training.

    Attributes
    ----------
    steps : int
    resumed : int
        Steps that a checkpoint had.
    losses : list of float
        Means over tenths of the run.
    seconds : float
        Of this process.
    """

    steps: int
    resumed: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(
    model: nn.Module,
    rows: Rows,
    loss: PruningLoss,
    pruner: Pruner,
    settings: Training,
    *,
    choice: Choice | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train and prune a model in place.

    Parameters
    ----------
    model : nn.Module
        Of transformers, float32.
    rows : Rows
    loss : PruningLoss
    pruner : Pruner
    settings : Training
    choice : Choice, optional
        Which weights are kept. None: the last ones.
    checkpoints : Checkpoints, optional
        Where they are written, and where training goes on from if there is one.
    progress : optional

    Returns
    -------
    Trained
        The model is in evaluation mode, and let go by loss and pruner.

    Raises
    ------
    InputError
        Model, rows, loss, pruner or checkpoint do not fit each other.
    NumericsError
        A loss in float32 or bfloat16 is not finite.
    """
    begin = monotonic()
    steps = settings.steps(len(rows))
    stored = None if checkpoints is None else checkpoints.load()
    done = Trained(steps, resumed=0 if stored is None else stored[1])
    run = _Run(model, rows, loss, pruner, settings, steps, choice)
    if progress is not None:
        progress.start(steps, "training")
        for _ in range(done.resumed):
            progress.advance("training")
    try:
        run.start(None if stored is None else stored[0])
        for step in range(done.resumed, steps):
            value = run.step(step)
            run.losses.append(value)
            if choice is not None:
                choice.see(model, pruner, step + 1, steps)
            if progress is not None:
                progress.advance(f"training, loss {value:.3f}, {100 * pruner.sparsity():.0f} % pruned")
            if checkpoints is not None and step + 1 < steps and checkpoints.due(step + 1):
                checkpoints.save(run.state(), step + 1)
        if choice is not None:
            choice.put_back(model, pruner, steps)
    finally:
        run.stop()
        if progress is not None:
            progress.finish()
    done.losses = _means(run.losses)
    done.seconds = monotonic() - begin
    return done


class _Run:
    """A model with everything that moves its weights."""

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        loss: PruningLoss,
        pruner: Pruner,
        settings: Training,
        steps: int,
        choice: Choice | None = None,
    ) -> None:
        self.model, self.rows, self.loss, self.pruner, self.settings = model, rows, loss, pruner, settings
        self.steps, self.choice = steps, choice
        self.losses: list[float] = []
        self.device = next(model.parameters()).device
        self.dtype = _PRECISIONS[settings.precision]
        self._epoch: tuple[int, list[Tensor]] = (-1, [])

    def start(self, state: State | None) -> None:
        self.loss.attach(self.model)
        self._frozen = _freeze_embeddings(self.model) if self.settings.freeze_embeddings else []
        inner = None if state is None else State(state.under("pruner"), state.values["pruner"])
        self.pruner.begin(self.model, self.steps, inner)  # may give the model's linears other sizes
        if state is not None:
            self.model.load_state_dict(state.under("model"))
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.named.values() if p.dim() > 1], "weight_decay": self.settings.decay},
                {"params": [p for p in self.named.values() if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=self.settings.rate,
            fused=self.device.type in ("cpu", "cuda"),
        )
        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.settings.rate
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        if state is not None:
            self._load_moments(state)
        if self.choice is not None:
            self.choice.forget()
            if state is not None:
                self.choice.restore(State(state.under("choice"), state.values["choice"]))
        self.model.train()

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """What is trained; a pruner may have put other parameters into the model."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _load_moments(self, state: State) -> None:
        steps = state.under("step")
        for name, parameter in self.named.items():
            if name in steps:
                moments = {key: state.tensors[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")}
                moments = {key: value.to(parameter.device) for key, value in moments.items()}
                self.optimizer.state[parameter] = {"step": steps[name].to(parameter.device), **moments}
        self.losses = list(state.values["losses"])
        if state.values["scaler"]:
            self.scaler.load_state_dict(state.values["scaler"])

    def state(self) -> State:
        inner = self.pruner.state()
        found = State(values={"pruner": inner.values, "losses": self.losses, "scaler": self.scaler.state_dict()})
        found.put("model", {name: value.clone() for name, value in self.model.state_dict().items()})
        found.put("pruner", inner.tensors)
        if self.choice is not None:
            chosen = self.choice.state()
            found.values["choice"] = chosen.values
            found.put("choice", chosen.tensors)
        for name, parameter in self.named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found.tensors[f"{key}/{name}"] = value
        return found

    def batches(self, step: int) -> Iterator[dict[str, Tensor]]:
        """Those of an optimizer step; the last of an epoch may have fewer."""
        settings = self.settings
        count = -(-len(self.rows) // settings.batch_size)
        an_epoch = -(-count // settings.accumulate)
        epoch, index = divmod(step, an_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.rows.order(seed=settings.seed, epoch=epoch, size=settings.batch_size))
            self.loss.epoch(self.model, epoch, first=index == 0)
        for numbers in self._epoch[1][index * settings.accumulate : (index + 1) * settings.accumulate]:
            batch = {name: value.to(self.device) for name, value in self.rows.batch(numbers).items()}
            yield batch if self.loss.contrast is None else batch | {NUMBERS: numbers.to(self.device)}

    def step(self, step: int) -> float:
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * settings.share(step, self.steps)
        total = torch.zeros((), device=self.device)
        batches = list(self.batches(step))
        if self.loss.contrast is not None:
            self.loss.contrast.draw(step)
        count = sum(len(batch["input_ids"]) for batch in batches)
        with _seeded(settings.seed, step, self.device):
            for batch in batches:
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    self.loss.accumulate = count / len(batch["input_ids"])  # by rows, as Trainer counts
                    value = self.loss.of(self.model, batch)
                scaled: Any = self.scaler.scale(value)
                scaled.backward()
                total += value.detach()
        self.pruner.before_step(step, self.optimizer, scale=self.scaler.get_scale())
        if settings.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(list(self.named.values()), settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.pruner.after_step(step, self.optimizer)
        self.optimizer.zero_grad()
        found = total.item()
        if found != found or abs(found) == float("inf"):
            if self.dtype is torch.float16:
                return self.losses[-1] if self.losses else 0.0
            raise NumericsError(
                f"the loss of step {step} is not finite", hint="a lower rate; check the model and its teacher"
            )
        return found

    def stop(self) -> None:
        self.pruner.end()
        self.loss.detach()
        for parameter in getattr(self, "_frozen", []):
            parameter.requires_grad_(True)
        self.model.eval()


def _freeze_embeddings(model: nn.Module) -> list[nn.Parameter]:
    from pyprune.models import adapter_for

    found = [p for module in adapter_for(model).embedding_modules(model) for p in module.parameters()]
    found = [parameter for parameter in found if parameter.requires_grad]
    for parameter in found:
        parameter.requires_grad_(False)
    return found


@contextmanager
def _seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Dropout of a step from its own seed; the global random state is as it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((seed * 1_000_003 + step + 1) % 2**63)
        yield


def _means(values: list[float], parts: int = 10) -> list[float]:
    size = -(-len(values) // parts) or 1
    chunks = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(chunk) / len(chunk) for chunk in chunks]


def described(settings: Training, loss: PruningLoss, pruner: Pruner, choice: Choice | None = None) -> dict[str, Any]:
    """JSON-able: everything chosen that decides the bits of a result."""
    found = {"training": asdict(settings), "loss": loss.settings(), "pruner": pruner.settings()}
    return found if choice is None else found | {"choice": choice.settings()}
