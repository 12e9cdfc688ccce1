# SPDX-License-Identifier: Apache-2.0
"""Errors a user can act on: what was asked, what was seen, what to try."""

from __future__ import annotations


class PypruneError(Exception):
    """Base of every error raised on purpose by pyprune.

    Parameters
    ----------
    message : str
        One sentence: what went wrong, naming the layer, file or argument.
    asked, seen, hint : str, optional
        What was requested, what was found instead, and what to do about it.
    """

    def __init__(
        self, message: str, *, asked: str | None = None, seen: str | None = None, hint: str | None = None
    ) -> None:
        self.message = message
        self.asked = asked
        self.seen = seen
        self.hint = hint
        lines = [message]
        lines += [
            f"  {label:<7}{text}"
            for label, text in (("asked:", asked), ("seen:", seen), ("try:", hint))
            if text is not None
        ]
        super().__init__("\n".join(lines))


class InputError(PypruneError, ValueError):
    """An argument, file or setting is not usable as given."""


class NumericsError(PypruneError, ArithmeticError):
    """A linear system could not be solved, or numbers stopped being finite."""


class BackendError(PypruneError, RuntimeError):
    """A forced or needed backend is not available."""
