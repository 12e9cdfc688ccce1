# SPDX-License-Identifier: Apache-2.0
"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyprune.errors import InputError

REPORT = "pyprune.json"  # of a pruned model
SOUP = "soup.json"  # of an averaged one
_OURS = (REPORT, SOUP)  # what tells a folder of ours from any other
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


@contextmanager
def whole_folder(target: Path, needed: int) -> Iterator[Path]:
    """A new folder to write to, which takes the place of ``target`` if all goes well.

    Parameters
    ----------
    target : Path
        Absolute. Nothing, an empty folder or an earlier result.
    needed : int
        Bytes that will be written.

    Raises
    ------
    InputError
        The path holds something other than an earlier result, or the disk is full.
    """
    check_target(target)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, needed)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        _seal(part)
        _swap(part, target)
    except InputError:
        raise
    except Exception as error:  # safetensors and tokenizers raise their own types for a failed write
        raise write_error(error, target.parent, "the model") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"the disk of {folder} is full: the model could not be written",
            asked=f"{needed / 2**20:.0f} MiB",
            seen=f"{free / 2**20:.0f} MiB free; nothing that was there before has been touched",
            hint="free some space, or another folder",
        )


def check_target(target: Path) -> None:
    """Raise :class:`InputError` where saving to ``target`` would destroy something else than an earlier result."""
    if target.is_dir():
        if any(target.iterdir()) and not any((target / name).exists() for name in _OURS):
            raise InputError(
                f"{target} is not empty and was not written by pyprune",
                hint=f"another folder; an earlier result (with {' or '.join(_OURS)}) may be replaced",
            )
    elif target.exists() or target.is_symlink():
        raise InputError(f"{target} is a file", hint="a folder to write the model to")


def _swap(part: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.rename(target, old)
        try:
            os.rename(part, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(part, target)
    sync_folder(target.parent)


def _seal(folder: Path) -> None:
    mode = stat.S_IMODE(next(folder / name for name in _OURS if (folder / name).exists()).stat().st_mode)
    for file in folder.iterdir():
        file.chmod(mode)  # safetensors writes files only their owner can read
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)
