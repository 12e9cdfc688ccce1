# SPDX-License-Identifier: Apache-2.0
"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyprune.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes, what: str) -> None:
    """Write, sync, rename, and sync the folder; a failure leaves the old file, if any, as it was.

    Raises
    ------
    InputError
        The disk is full or the folder cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise write_error(error, path.parent, what) from error


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(error: BaseException, folder: Path, what: str) -> InputError:
    """The error to raise for a failed write, naming a full disk as such."""
    text = str(error)
    full = getattr(error, "errno", None) in _FULL or "No space left" in text or "os error 28" in text
    if full:
        return InputError(
            f"the disk of {folder} is full: {what} could not be written",
            seen="nothing that was there before has been touched",
            hint="free some space, or another folder",
        )
    return InputError(f"{what} could not be written to {folder}", seen=text, hint="check the path and its permissions")
