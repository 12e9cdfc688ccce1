# SPDX-License-Identifier: Apache-2.0
"""``PruningCallback``: a pruner within ``transformers.Trainer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from pyprune.errors import InputError
from pyprune.training.checkpoint import load_state, save_state
from pyprune.training.distillation import PruningLoss
from pyprune.training.pruning import Pruner

FILE = "pyprune_training.safetensors"  # beside Trainer's own files of a checkpoint


class PruningCallback(TrainerCallback):  # type: ignore[misc]
    """Prune while ``Trainer`` trains, with its optimizer, schedule, precision, processes and checkpoints.

    Parameters
    ----------
    pruner : Pruner
        Such as :class:`MagnitudePruning` or :class:`MovementPruning`.
    loss : PruningLoss, optional
        What ``Trainer`` was given as ``compute_loss_func``. Without one it trains by its own loss.
    resume_from : str or Path, optional
        The checkpoint that training goes on from, if it is not in the ``output_dir``.

    Examples
    --------
    >>> pruner = MovementPruning(Ramp(0.9))  # doctest: +SKIP
    >>> loss = PruningLoss(teacher, hard=0.1, soft=0.9)  # doctest: +SKIP
    >>> options = {"compute_loss_func": loss, "callbacks": [PruningCallback(pruner, loss)]}  # doctest: +SKIP
    >>> trainer = Trainer(model, arguments, train_dataset=data, **options)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    >>> pyprune.PruneResult(model, pruner.linears(), {}).save("pruned")  # doctest: +SKIP
    """

    def __init__(
        self, pruner: Pruner, loss: PruningLoss | None = None, *, resume_from: str | Path | None = None
    ) -> None:
        self.pruner, self.loss, self._resume_from = pruner, loss, resume_from

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before there is an optimizer: learned maps are parameters of the model."""
        if args.n_gpu > 1:
            raise InputError(
                "nn.DataParallel copies a model that is pruned in place",
                seen=f"{args.n_gpu} GPUs in one process",
                hint="torchrun --nproc-per-node, or CUDA_VISIBLE_DEVICES with one of them",
            )
        if getattr(self.pruner, "shrink", False):
            raise InputError(
                "a model cannot be made smaller within Trainer, which keeps its parameters", hint="shrink=False"
            )
        if self.loss is not None:
            self.loss.attach(kwargs["model"])
            self.loss.accumulate = args.gradient_accumulation_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take hold of the model, from its first step or from where a checkpoint is."""
        model: nn.Module = kwargs["model"]
        stored = None
        if state.global_step:
            folder = Path(self._resume_from or f"{args.output_dir}/checkpoint-{state.global_step}")
            stored, step = load_state(folder / FILE, self.pruner.settings())
            if step != state.global_step:
                raise InputError(f"{folder / FILE} is of another step", asked=str(state.global_step), seen=str(step))
        self.pruner.begin(model, state.max_steps, stored)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Banks of a contrast are encoded."""
        if self.loss is not None:
            whole = int(state.epoch or 0)
            self.loss.epoch(kwargs["model"], whole, first=float(state.epoch or 0) == whole)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A contrast's other rows are those of the step."""
        if self.loss is not None and self.loss.contrast is not None:
            self.loss.contrast.draw(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are there."""
        optimizer = kwargs["optimizer"]
        scaler = getattr(optimizer, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        self.pruner.before_step(state.global_step, optimizer, scale=scale)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Weights were moved."""
        self.pruner.after_step(state.global_step, kwargs["optimizer"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sparsity, and the parts of the loss, beside what is logged."""
        logs = kwargs.get("logs")
        if logs is not None and "loss" in logs:
            found = {"sparsity": self.pruner.sparsity()}
            if self.loss is not None:
                found |= {f"loss_{name}": float(value) for name, value in self.loss.last.items()}
            logs |= found  # for callbacks that come later
            if state.log_history:
                state.log_history[-1] |= found

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Beside Trainer's own files."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            save_state(folder / FILE, self.pruner.state(), self.pruner.settings(), state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go of the model; if it is now that of an earlier checkpoint, with the masks of that one."""
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None:
            stored, _ = load_state(Path(best) / FILE, self.pruner.settings())
            self.pruner.begin(kwargs["model"], state.max_steps, stored)
        self.pruner.end()
        if self.loss is not None:
            self.loss.detach()
