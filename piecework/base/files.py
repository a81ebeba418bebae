"""Files that are whole or absent, and folders that are closed to others.

A writer fills a temporary file in the same folder, syncs it, and gives it its name in one step.
A kill at any moment leaves either no file or a whole one. What it may leave beside it is a
temporary file, which the next write to the same name removes. Writers hold a lock on theirs, so
that nobody removes one that is still being filled.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from piecework.base.errors import PieceworkError
from piecework.base.explain import explain, user_name
from piecework.base.text import one_line

PRIVATE_FILE: Final = 0o600
PUBLIC_FILE: Final = 0o644
PRIVATE_FOLDER: Final = 0o700
# What file systems without hard links answer: FAT, some network and container volumes.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class FileError(PieceworkError):
    """A file or folder could not be read, written or made. The text names it and says why."""


class FileExists(FileError):
    """A file that must not be overwritten is there already."""


class Disk(Protocol):
    """The steps of a write. Every method raises `OSError` as the function of `os` does."""

    def create(self, path: Path, mode: int) -> int:
        """Open a new file for writing, which must not exist, and return its descriptor."""
        ...

    def write(self, descriptor: int, data: bytes) -> int:
        """Write the start of `data` and return how many bytes that was."""
        ...

    def sync(self, descriptor: int) -> None: ...

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name, which must not exist."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of the file that has it."""
        ...

    def unlink(self, path: Path) -> None: ...

    def sync_folder(self, path: Path) -> None:
        """Make names in a folder last."""
        ...

    def owner(self, path: Path) -> int:
        """The user id that a folder belongs to."""
        ...


class SystemDisk:
    """The machine's disk."""

    def create(self, path: Path, mode: int) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)

    def write(self, descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that has nothing to sync in a folder
                raise
        finally:
            os.close(descriptor)

    def owner(self, path: Path) -> int:
        return path.stat().st_uid


SYSTEM_DISK: Final = SystemDisk()


def write_private(
    path: Path, data: bytes, *, replace: bool = False, disk: Disk = SYSTEM_DISK
) -> None:
    """Write a file that only its owner can read (mode 0600), whole or not at all.

    Raises:
        FileExists: the file is there and `replace` is false. It is left as it is.
        FileError: the file cannot be written.
    """
    _write(path, data, PRIVATE_FILE, replace, disk)


def write_public(
    path: Path, data: bytes, *, replace: bool = False, disk: Disk = SYSTEM_DISK
) -> None:
    """Write a file that everybody can read (mode 0644), whole or not at all.

    Raises:
        FileExists: the file is there and `replace` is false. It is left as it is.
        FileError: the file cannot be written.
    """
    _write(path, data, PUBLIC_FILE, replace, disk)


def read(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        FileError: the file is missing, cannot be read, or is longer.
    """
    with _translated("read", path), path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FileError(f"{shown(path)} is larger than {limit} bytes")
    return data


def private_folder(path: Path, *, marks: Collection[str] = (), disk: Disk = SYSTEM_DISK) -> None:
    """Make a folder that only its owner can enter (mode 0700), or close one that is there.

    An open folder is closed if it is empty or holds one of the files in `marks`, which only our
    program makes. Closing any other, such as /etc or a project, would lock its users out.

    Raises:
        FileError: it cannot be made, belongs to somebody else, is for everybody, such as /tmp, or
            is open and holds other files.
    """
    with _translated("make the folder", path):
        path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        owner, us, mode = disk.owner(path), os.geteuid(), path.stat().st_mode
        if owner != us:
            raise FileError(
                f"{shown(path)} belongs to {user_name(owner)}, this program runs as "
                f"{user_name(us)}. Run it as the owner, or choose a folder inside that is yours"
            )
        if mode & stat.S_ISVTX or path.resolve() == Path(path.resolve().anchor):
            raise FileError(f"{shown(path)} is a folder for everybody. Choose a folder inside it")
        if mode & 0o777 == PRIVATE_FOLDER:
            return
        if mode & 0o077 and not _may_close(path, marks):
            raise FileError(
                f"{shown(path)} holds other files, and other users may enter it. "
                "Choose a new folder inside it, or close it first: chmod 700"
            )
        path.chmod(PRIVATE_FOLDER)


def _may_close(path: Path, marks: Collection[str]) -> bool:
    # A new ext4 volume is not quite empty.
    names = set(os.listdir(path)) - {"lost+found"}  # noqa: PTH208  no error for odd names
    return not names or not names.isdisjoint(marks)


def shown(path: Path) -> str:
    """Return a path as it may stand in a message."""
    return one_line(os.fspath(path), 300) or "''"


# --- one write


def _write(path: Path, data: bytes, mode: int, replace: bool, disk: Disk) -> None:
    with _translated("write", path):
        _remove_leftovers(path, disk)
        if not replace and os.path.lexists(path):
            raise FileExistsError
        temporary, descriptor = _create_locked(path, mode, disk)
        try:
            _fill(descriptor, data, mode, disk)
            if replace:
                disk.rename(temporary, path)
            else:
                _name_exclusively(temporary, path, disk)
        except BaseException:
            with suppress(OSError):
                disk.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        disk.sync_folder(path.parent)


def _fill(descriptor: int, data: bytes, mode: int, disk: Disk) -> None:
    if (os.fstat(descriptor).st_mode ^ mode) & 0o777:  # the umask took bits
        os.fchmod(descriptor, mode)
    rest = memoryview(data)
    while rest:
        rest = rest[disk.write(descriptor, bytes(rest)) :]
    disk.sync(descriptor)


def _name_exclusively(temporary: Path, path: Path, disk: Disk) -> None:
    """A link fails if the name is taken; a rename would replace the file."""
    try:
        disk.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Without links the check and the rename are two steps. Only two writers at once can
        # come between them, and each of their files is whole.
        if os.path.lexists(path):
            raise FileExistsError from None
        disk.rename(temporary, path)
    else:
        disk.unlink(temporary)


def _create_locked(path: Path, mode: int, disk: Disk) -> tuple[Path, int]:
    """A new temporary file with a lock on it. The kernel drops the lock when the process ends."""
    while True:
        temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.tmp")
        descriptor = disk.create(temporary, mode)
        if _lock(descriptor) and os.fstat(descriptor).st_nlink == 1:
            return temporary, descriptor
        # Somebody who cleans up took it for a leftover before it was locked.
        os.close(descriptor)


def _remove_leftovers(path: Path, disk: Disk) -> None:
    prefix = _prefix(path)
    for name in os.listdir(path.parent):  # noqa: PTH208  names only, and no error for odd ones
        if not (name.startswith(prefix) and name.endswith(".tmp")):
            continue
        leftover = path.with_name(name)
        with suppress(FileNotFoundError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if _lock(descriptor):
                    disk.unlink(leftover)
            finally:
                os.close(descriptor)


def _prefix(path: Path) -> str:
    """Of a fixed length: a long name with something added would be too long."""
    return f".{sha256(os.fsencode(path.name)).hexdigest()[:16]}-"


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _translated(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        if verb != "write":
            raise FileError(f"cannot {verb} {shown(path)}: it is not a folder") from None
        raise FileExists(f"{shown(path)} exists already and is not overwritten") from None
    except (OSError, ValueError) as error:
        line = explain(error)
        if line is None:
            raise
        line = line.removeprefix(f"{shown(path)}: ").removeprefix("cannot write: ")
        raise FileError(f"cannot {verb} {shown(path)}: {line}") from error
