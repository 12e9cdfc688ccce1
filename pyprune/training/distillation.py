# SPDX-License-Identifier: Apache-2.0
"""``PruningLoss``: labels, a teacher's predictions, hidden states and attentions, weighed and added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyprune.errors import InputError
from pyprune.training.contrast import Contrast
from pyprune.training.losses import PUBLISHED, HiddenMaps, LogitsLoss, attention_loss, hidden_loss
from pyprune.training.masks import unwrapped
from pyprune.training.processes import is_parallel
from pyprune.training.rows import NUMBERS

_NEVER = -1e4  # logit of padding as the start or end of an answer
MAPS = "pyprune_maps"  # the submodule that learned maps are, while a model is trained


@dataclass(frozen=True)
class Parts:
    """What one batch's loss is made of, before weights; each a scalar with a graph, unscaled.

    Attributes
    ----------
    prediction : Tensor
        Labels, the teacher's predictions and contrasts, weighed: what scores of importance are made of.
    representation : Tensor
        Hidden states and attentions, weighed.
    share : float or Tensor
        What the batch counts within its optimizer step: 1 without gradient accumulation.
    """

    prediction: Tensor
    representation: Tensor
    share: Any


class PruningLoss:
    """A loss for ``Trainer(compute_loss_func=...)`` and for loops of one's own (:meth:`of`).

    Parameters
    ----------
    teacher : nn.Module, optional
        Fine-tuned for the same task. It is put into evaluation mode, has no gradients, and sees the same inputs.
    hard : float
        Weight of the labels' cross entropy (of the squared distance, if there is one output).
    soft : float
        Weight of ``logits``, between the predictions of student and teacher. 0 without a teacher.
    logits : LogitsLoss
        One output: the squared distance takes its place. Starts and ends of answers count half each.
    hidden, attention : float
        Weights of :func:`hidden_loss` and :func:`attention_loss`.
    pairs : sequence of (int, int), optional
        Which hidden states of student and teacher are compared; 0 are the embeddings. Default: every second one up to
        the last if both have as many, as in GRAIN.
    maps : bool
        Learn a linear map for each pair; it is a part of the student, and trained with it, until :meth:`detach`.
    padding : bool
        Padding counts too, as in the official code of randomized masks.
    device : torch.device or str, optional
        Where the teacher is put. Default: it stays where it is.
    contrast : Contrast, optional
        CAP's terms. Batches then hold the numbers of their rows, int64 ``[rows]``, as ``"pyprune_rows"``: in
        ``Trainer`` a column of the data set, with ``remove_unused_columns=False``.

    Attributes
    ----------
    last : dict of str to Tensor
        Parts of the last batch, for logs.

    Examples
    --------
    >>> loss = PruningLoss(teacher, hard=0.1, soft=0.9)  # doctest: +SKIP
    >>> options = {"compute_loss_func": loss, "callbacks": [PruningCallback(pruner, loss)]}  # doctest: +SKIP
    >>> trainer = Trainer(model, arguments, **options)  # doctest: +SKIP
    """

    def __init__(
        self,
        teacher: nn.Module | None = None,
        *,
        hard: float = 1.0,
        soft: float = 0.0,
        logits: LogitsLoss = PUBLISHED["movement"],
        hidden: float = 0.0,
        attention: float = 0.0,
        pairs: Sequence[tuple[int, int]] | None = None,
        maps: bool = False,
        padding: bool = False,
        device: torch.device | str | None = None,
        contrast: Contrast | None = None,
    ) -> None:
        weights = {"hard": hard, "soft": soft, "hidden": hidden, "attention": attention}
        wrong = [f"{name}={value}" for name, value in weights.items() if not value >= 0]
        if wrong or not any(weights.values()):
            raise InputError(
                "weights of losses are not negative, and not all zero", seen=", ".join(wrong) or "all zero"
            )
        if teacher is None and any((soft, hidden, attention)):
            raise InputError("soft, hidden and attention losses need a teacher", hint="PruningLoss(teacher, ...)")
        self.hard, self.soft, self.hidden, self.attention = hard, soft, hidden, attention
        self.logits, self.padding, self._with_maps = logits, padding, maps
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        if device is not None and self.teacher is not None:
            self.teacher.to(device)
        self._pairs = None if pairs is None else [(int(ours), int(theirs)) for ours, theirs in pairs]
        self.contrast = contrast
        self.accumulate = 1.0  # batches an optimizer step, where the labels do not say it
        self.watch: list[Callable[[Parts], None]] = []
        self.last: dict[str, Tensor] = {}
        self._inputs: dict[str, Any] = {}
        self._numbers: Tensor | None = None
        self._handle: Any = None
        self.maps: HiddenMaps | None = None

    def settings(self) -> dict[str, Any]:
        """JSON-able."""
        names = ("hard", "soft", "hidden", "attention", "padding")
        found = {name: getattr(self, name) for name in names}
        return (
            found
            | {"logits": repr(self.logits), "pairs": self._pairs, "maps": self._with_maps}
            | {"contrast": None if self.contrast is None else self.contrast.settings()}
        )

    def attach(self, model: nn.Module) -> None:
        """See what goes into the student, and ask it for hidden states and attentions where they are needed.

        Called by :class:`PruningCallback`; before the optimizer is made, as learned maps are parameters.
        """
        if self.hidden and self._with_maps and is_parallel(model):
            raise InputError(
                "learned maps are parameters that DistributedDataParallel would not know",
                hint="loss.attach(model) before the model is wrapped",
            )
        model = unwrapped(model)
        self.detach()
        self._model: Any = model
        if self.hidden:
            self.pairs = self._pairs or _even_pairs(model, self.teacher)
            if self._with_maps:
                self.maps = self._make_maps(model)
                model.add_module(MAPS, self.maps)

        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
            if args:
                raise InputError("a model with a PruningLoss takes named inputs only", hint="model(**batch)")
            self._numbers = kwargs.pop(NUMBERS, None)
            self._inputs = dict(kwargs)
            wanted = bool(self.hidden) or self.contrast is not None
            asked = {"output_hidden_states": wanted, "output_attentions": bool(self.attention)}
            return args, kwargs | {name: True for name, wanted in asked.items() if wanted}

        self._handle = model.register_forward_pre_hook(see, with_kwargs=True)

    def _make_maps(self, model: Any) -> HiddenMaps:
        theirs: Any = self.teacher
        sizes = (int(model.config.hidden_size), int(theirs.config.hidden_size))
        parameter = next(model.parameters())
        return HiddenMaps(len(self.pairs), *sizes).to(parameter.device, parameter.dtype)

    def detach(self) -> None:
        """Let go of the student; its learned maps are taken out of it."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            if MAPS in self._model._modules:
                del self._model._modules[MAPS]
        self._inputs = {}

    def epoch(self, model: nn.Module, epoch: int, *, first: bool = True) -> None:
        """An epoch begins, or goes on where ``first`` is False: banks of a contrast are encoded."""
        if self.contrast is not None:
            self.contrast.epoch(model, epoch, first=first)

    def of(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Run the student, the teacher, and give the loss; ``labels`` may be among the inputs."""
        inputs = dict(batch)
        labels = inputs.pop("labels", None)
        return self(model(**inputs), labels)

    def __call__(self, outputs: Any, labels: Tensor | None = None, num_items_in_batch: Any = None) -> Tensor:
        """The loss of the batch that the student has just seen, as a share of its optimizer step.

        Raises
        ------
        InputError
            :meth:`attach` was not called, or something is missing: labels, classes, layers.
        """
        if self._handle is None:
            raise InputError(
                "the loss does not know its model", hint="PruningCallback(pruner, loss), or loss.attach(model)"
            )
        keep = self._inputs.get("attention_mask")
        found = self._parts(outputs, labels, keep)
        weights = {"hard": self.hard, "soft": self.soft, "hidden": self.hidden, "attention": self.attention}
        weighed = {name: weights[name] * value for name, value in found.items()}
        zero = next(iter(found.values())).new_zeros(())
        prediction = sum((weighed[name] for name in ("hard", "soft") if name in weighed), zero)
        representation = sum((weighed[name] for name in ("hidden", "attention") if name in weighed), zero)
        if self.contrast is not None and self._model.training:
            found["contrast"] = self._contrasted(outputs, labels)
            prediction = prediction + found["contrast"]
        parts = Parts(prediction, representation, self._share(labels, num_items_in_batch))
        if self._model.training and torch.is_grad_enabled():
            self.last = {name: value.detach() for name, value in found.items()}
            for see in self.watch:
                see(parts)
        loss: Tensor = (parts.prediction + parts.representation) * parts.share
        return loss

    def _parts(self, outputs: Any, labels: Tensor | None, keep: Tensor | None) -> dict[str, Tensor]:
        found = {}
        ours = predictions(outputs, keep)
        if self.hard:
            found["hard"] = self._against_labels(outputs, ours, labels)
        if self.teacher is None or not (self.soft or self.hidden or self.attention):
            return found
        theirs = self._taught()
        if self.soft:
            taught = predictions(theirs, keep)
            if len(taught) != len(ours):
                raise InputError(
                    "student and teacher have different heads", seen=f"{len(ours)} and {len(taught)} outputs"
                )
            losses = [self._soft(a, b.to(a.device)) for a, b in zip(ours, taught, strict=True)]
            found["soft"] = torch.stack(losses).mean()
        real = None if self.padding else keep
        if self.hidden:
            student = [outputs.hidden_states[index] for index, _ in self.pairs]
            teacher = [theirs.hidden_states[index].to(student[0].device) for _, index in self.pairs]
            found["hidden"] = hidden_loss(student, teacher, keep=real, maps=self.maps)
        if self.attention:
            if not outputs.attentions or not theirs.attentions or outputs.attentions[0] is None:
                raise InputError(
                    "a model gives no attentions",
                    hint='attn_implementation="eager" for student and teacher',
                )
            found["attention"] = attention_loss(outputs.attentions, theirs.attentions, keep=real)
        return found

    def _contrasted(self, outputs: Any, labels: Tensor | None) -> Tensor:
        if self._numbers is None:
            raise InputError(
                "a contrast needs the numbers of a batch's rows",
                hint=f"{NUMBERS!r} in every batch (in Trainer: a column, and remove_unused_columns=False)",
            )
        assert self.contrast is not None
        return self.contrast(self._model, outputs, self._numbers, labels)

    def _soft(self, ours: Tensor, theirs: Tensor) -> Tensor:
        loss: Tensor = (
            self.logits(ours, theirs) if ours.shape[-1] > 1 else functional.mse_loss(ours.float(), theirs.float())
        )
        return loss

    @torch.no_grad()
    def _taught(self) -> Any:
        """The teacher's outputs of the same inputs."""
        teacher: Any = self.teacher
        device = next(teacher.parameters()).device
        known = ("labels", "start_positions", "end_positions", "num_items_in_batch")
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self._inputs.items()
            if name not in known
        }
        inputs |= {"output_hidden_states": bool(self.hidden), "output_attentions": bool(self.attention)}
        found: Any = teacher(**inputs)
        return found

    def _against_labels(self, outputs: Any, ours: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        if labels is None:
            own = getattr(outputs, "loss", None)
            if own is None:
                raise InputError("the loss of labels needs labels", hint='"labels" in every batch, or hard=0')
            value: Tensor = own
            return value
        logits = ours[0]
        if logits.shape[-1] == 1:
            return functional.mse_loss(logits.squeeze(-1).float(), labels.to(logits.device).float())
        if labels.dim() > 1:  # one for each token; those of padding are -100
            keep = self._inputs["attention_mask"].bool()
            labels = labels[keep]
        return functional.cross_entropy(logits.float(), labels.to(logits.device))

    def _share(self, labels: Tensor | None, items: Any) -> Any:
        """The batch's part of the labels of an optimizer step, which ``Trainer`` counts over batches and processes."""
        if not self._model.training:
            return 1.0
        if items is None or labels is None:
            return 1.0 / self.accumulate
        return (labels != -100).sum() / items


def predictions(outputs: Any, keep: Tensor | None) -> tuple[Tensor, ...]:
    """Logits ``[rows, classes]`` of a model: one, or starts and ends of answers; of tokens those that are real."""
    if getattr(outputs, "start_logits", None) is not None:
        found = (outputs.start_logits, outputs.end_logits)
        return found if keep is None else tuple(value.masked_fill(~keep.bool(), _NEVER) for value in found)
    logits = outputs.logits
    if logits.dim() == 3:
        logits = logits.flatten(0, 1) if keep is None else logits[keep.bool()]
    return (logits,)


def _even_pairs(model: Any, teacher: Any) -> list[tuple[int, int]]:
    layers = [int(m.config.num_hidden_layers) for m in (model, teacher)]
    if layers[0] != layers[1]:
        raise InputError(
            "student and teacher have different numbers of layers",
            seen=f"{layers[0]} and {layers[1]}",
            hint="pairs=[(student's layer, teacher's), ...]",
        )
    return [(index, index) for index in range(layers[0] % 2, layers[0] + 1, 2)]
