# SPDX-License-Identifier: Apache-2.0
"""``Contrast``: CAP's three terms, which go with any pruner (Xu et al., AAAI 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.training.contrastive import Bank, Normalisation, bank_loss, extra_rows
from pyprune.training.masks import unwrapped
from pyprune.training.rows import Rows

TERMS = ("pretrained", "snapshots", "finetuned")
_BATCH = 64
_SEED = 7_919


class Contrast:
    """Keep a row's representation near those that denser models had of it, and of rows of its label.

    Three banks: of the model before any training (PrC), of the teacher (FiC), and of the model itself at the beginning
    of every epoch but the first (SnC). The representation is the pooler's output, or where a model has none the last
    hidden state of the first token; banks are encoded in evaluation mode, in the order of the rows. Anchors come before
    the classifier's dropout (the authors' after it).

    Parameters
    ----------
    folder : Path
        For the banks' files.
    rows : Rows
        The training set.
    teacher : nn.Module, optional
        Fine-tuned. Without one there is no FiC.
    terms : tuple of str
        Of ``"pretrained"``, ``"snapshots"``, ``"finetuned"``.
    temperature, unsupervised, supervised : float
        ``τ`` and the weights of both kinds of positives; ``supervised`` needs labels.
    extra : int
        Representations of other rows in each contrast; all there are if those are fewer.
    keep : int
        Snapshots kept at most.
    every : int
        Epochs from one snapshot to the next.
    normalisation : {"published", "anchors"}
        See :func:`contrastive_loss`.
    seed : int
        Which other rows are drawn.
    """

    def __init__(
        self,
        folder: Path,
        rows: Rows,
        *,
        teacher: nn.Module | None = None,
        terms: tuple[str, ...] = TERMS,
        temperature: float = 0.1,
        unsupervised: float = 0.1,
        supervised: float = 10.0,
        extra: int = 4096,
        keep: int = 10,
        every: int = 1,
        normalisation: Normalisation = "published",
        seed: int = 0,
    ) -> None:
        if not terms or any(term not in TERMS for term in terms):
            raise InputError("unknown terms of a contrast", seen=", ".join(terms) or "none", hint=", ".join(TERMS))
        if not temperature > 0 or min(unsupervised, supervised) < 0 or extra < 0 or min(keep, every) < 1:
            raise InputError(
                "a contrast has a temperature above 0 and no negative weights",
                seen=f"temperature {temperature}, weights {unsupervised} and {supervised}, extra {extra}, "
                f"keep {keep}, every {every}",
            )
        if "finetuned" in terms and teacher is None:
            raise InputError("the contrast with a fine-tuned model needs a teacher", hint='terms=("pretrained", ...)')
        if supervised and rows.labels is None:
            raise InputError("the supervised term needs labels", hint="supervised=0")
        self._folder, self._rows, self._teacher, self.terms = folder, rows, teacher, tuple(terms)
        self.temperature, self.unsupervised, self.supervised = temperature, unsupervised, supervised
        self.extra, self.keep, self.every = extra, keep, every
        self.normalisation, self.seed = normalisation, seed
        self._banks: dict[str, Bank] = {}
        self._drawn = torch.Generator()
        self._ahead: int | None = None

    def settings(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint has to agree with."""
        names = ("temperature", "unsupervised", "supervised", "extra", "keep", "every", "normalisation", "seed")
        return {"terms": list(self.terms)} | {name: getattr(self, name) for name in names}

    def epoch(self, model: nn.Module, epoch: int, *, first: bool) -> None:
        """Encode what is missing for an epoch, from 0; ``first``: no step of it is done yet.

        Raises
        ------
        InputError
            The training went on from a checkpoint, and the banks are not there any more.
        """
        ahead, self._ahead = self._ahead, None
        if first and ahead == epoch:
            return
        model = unwrapped(model)
        self._folder.mkdir(parents=True, exist_ok=True)
        for term in self.terms:
            source = self._teacher if term == "finetuned" else model
            assert source is not None
            bank = self._bank(term, source)
            wanted = epoch // self.every if term == "snapshots" else 1
            if epoch == 0 and first:
                bank.forget(0)  # whatever an earlier run left
            if bank.finished > wanted:  # the run was stopped after this one, and went on from a checkpoint before it
                if bank.finished > bank.snapshots:
                    raise InputError(
                        f"{bank.path} holds later snapshots in the place of earlier ones", hint="start anew"
                    )
                bank.forget(wanted)
            if bank.finished < wanted:
                fresh = first and bank.finished == wanted - 1 and (term != "pretrained" or epoch == 0)
                if not fresh and term != "finetuned":
                    raise InputError(
                        f"{bank.path} does not hold what the checkpoint was trained with", hint="start anew"
                    )
                self._encode(source, bank)

    def ahead(self, model: nn.Module, epoch: int) -> None:
        """Encode what an epoch that is about to begin needs, before the model is changed; :meth:`epoch` then has it."""
        self.epoch(model, epoch, first=True)
        self._ahead = epoch

    def _bank(self, term: str, model: Any) -> Bank:
        if term not in self._banks:
            features, count = int(model.config.hidden_size), self.keep if term == "snapshots" else 1
            path = self._folder / f"{term}.safetensors"
            self._banks[term] = Bank(path, rows=len(self._rows), features=features, snapshots=count)
        return self._banks[term]

    @torch.no_grad()
    def _encode(self, model: Any, bank: Bank) -> None:
        training, device = model.training, next(model.parameters()).device
        model.eval()
        try:
            for numbers in torch.split(torch.arange(len(self._rows)), _BATCH):
                batch = {name: value.to(device) for name, value in self._rows.inputs(numbers).items()}
                hidden = model.base_model(**batch).last_hidden_state
                bank.put(numbers, represented(model, hidden))
        finally:
            model.train(training)
        bank.finish()

    def draw(self, step: int) -> None:
        """Other rows are those of a step."""
        self._drawn.manual_seed(self.seed * _SEED + step)

    def __call__(self, model: nn.Module, outputs: Any, numbers: Tensor, labels: Tensor | None) -> Tensor:
        """The sum of the terms for a batch of these rows; ``outputs`` with hidden states."""
        anchors = represented(model, outputs.hidden_states[-1])
        total = anchors.new_zeros((), dtype=torch.float32)
        for term in self.terms:
            bank = self._banks.get(term)
            if bank is None or not bank.depth:
                continue
            others = extra_rows(len(self._rows), self.extra // bank.depth, self._drawn).to(numbers.device)
            known = self._rows.labels
            total = total + bank_loss(
                anchors,
                numbers,
                bank.candidates(torch.cat([numbers, others])),
                others,
                labels=labels if labels is None else labels.to(anchors.device),
                far_labels=None if known is None else known.to(anchors.device)[others],
                temperature=self.temperature,
                unsupervised=self.unsupervised,
                supervised=self.supervised,
                normalisation=self.normalisation,
            )
        return total


def represented(model: Any, hidden: Tensor) -> Tensor:
    """A sequence's representation ``[batch, features]`` of the last hidden states ``[batch, tokens, features]``."""
    pooler = getattr(unwrapped(model).base_model, "pooler", None)
    found: Tensor = hidden[:, 0] if pooler is None else pooler(hidden)
    return found
