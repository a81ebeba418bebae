"""Bringing a SQLite file to the newest schema, one step at a time.

Every step is one transaction. Before the first step the file is copied to a backup beside it. A
kill at any moment leaves the file at one schema or the next, and opening it again goes on from
there. The schema is `PRAGMA user_version`, which commits with the step that changes it.

A caller opens its connection, sets its pragmas and then calls `Schema.prepare`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import apsw

from piecework.base.errors import PieceworkError
from piecework.base.files import PRIVATE_FILE, SYSTEM_DISK, Disk, shown

Step: TypeAlias = Callable[[apsw.Connection], None]
"""Changes tables and rows inside a transaction that the caller has begun."""

UNVERSIONED: Final = 1
"""What a file is that has tables and no version: it was made before schemas were kept."""


class SchemaTooNew(PieceworkError):
    """A newer program made this file. Nothing was changed. Use that program."""


class SchemaTooOld(PieceworkError):
    """This file has a schema from before schemas were kept. Nothing was changed."""


class MigrationFailed(PieceworkError):
    """A step could not be taken. The file is as it was before that step, and the backup is there.

    Raised for a full disk, a file that another process holds, and rows that break a foreign key.
    """


@dataclass(frozen=True, slots=True)
class Migration:
    """The step that brings a file to `version` from the one before."""

    version: int
    step: Step


def script(sql: str) -> Step:
    """Make a step of SQL statements."""

    def step(db: apsw.Connection) -> None:
        db.execute(sql).fetchall()

    return step


@dataclass(frozen=True, slots=True)
class Schema:
    """Every schema of one kind of file.

    Attributes:
        what: What a person calls the file, such as "the client's database".
        first: The oldest schema that is kept. Older files are refused.
        create: Makes the first schema in an empty file.
        migrations: Later schemas, in order and without gaps. A new file takes these steps too, so
            that old and new files end up the same.
        old: What to do with a file that is older than `first`. One sentence.
    """

    what: str
    first: int
    create: Step
    migrations: tuple[Migration, ...] = ()
    old: str = "Move it away and start with a new one."

    def __post_init__(self) -> None:
        versions = [migration.version for migration in self.migrations]
        if versions != list(range(self.first + 1, self.latest + 1)):
            raise ValueError("migrations are numbered one by one after the first schema")

    @property
    def latest(self) -> int:
        """The newest schema."""
        return self.first + len(self.migrations)

    def version(self, db: apsw.Connection) -> int:
        """Return the schema of an open file: 0 if it is empty."""
        found: Any = db.execute("PRAGMA user_version").get
        if found == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchall():
            return UNVERSIONED
        return int(found)

    def prepare(self, db: apsw.Connection, file: Path, *, disk: Disk = SYSTEM_DISK) -> None:
        """Bring an open file to the newest schema.

        Args:
            db: The connection, outside of a transaction.
            file: Where it lies. Backups go beside it.
            disk: The steps of a backup's last write.

        Raises:
            SchemaTooNew: a newer program made the file.
            SchemaTooOld: the file is older than the first kept schema.
            MigrationFailed: a step could not be taken.
        """
        if self._check(db, file) == self.latest:
            return
        with self._steps(db, file):
            backed_up = False
            while self._check(db, file) != self.latest:
                backed_up = self._advance(db, file, disk, backed_up)

    def backup_of(self, file: Path, version: int) -> Path:
        """Return where the copy of a file at a schema is kept."""
        return file.with_name(f"{file.name}.schema-{version}.backup")

    def _advance(self, db: apsw.Connection, file: Path, disk: Disk, backed_up: bool) -> bool:
        """Take the next step. Return whether there is a backup."""
        alone = _is_exclusive(db)
        if alone and not backed_up and (version := self._check(db, file)):
            _back_up(db, self.backup_of(file, version), disk)
            backed_up = True
        with _transaction(db):
            # Another process may have taken the step while this one waited for the lock.
            version = self._check(db, file)
            if version == self.latest:
                return backed_up
            if version and not backed_up:
                # Under the write lock nobody changes the file, and another connection may read it.
                with closing(apsw.Connection(str(file), apsw.SQLITE_OPEN_READONLY)) as source:
                    _back_up(source, self.backup_of(file, version), disk)
            self._step_after(version)(db)
            if broken := db.execute("PRAGMA foreign_key_check").fetchall():
                raise MigrationFailed(
                    f"{self.what} {shown(file)}: {len(broken)} rows name rows that are not there"
                )
            done = version + 1 if version else self.first
            db.execute(f"PRAGMA user_version = {done}").fetchall()
        return True

    def _step_after(self, version: int) -> Step:
        return self.migrations[version - self.first].step if version else self.create

    def _check(self, db: apsw.Connection, file: Path) -> int:
        version = self.version(db)
        if version > self.latest:
            raise SchemaTooNew(
                f"{self.what} {shown(file)} has schema {version}, made by a newer program. "
                f"This one knows schema {self.latest}. Use the newer program"
            )
        if 0 < version < self.first:
            raise SchemaTooOld(
                f"{self.what} {shown(file)} has schema {version}, from before schemas were kept. "
                f"{self.old}"
            )
        return version

    @contextmanager
    def _steps(self, db: apsw.Connection, file: Path) -> Iterator[None]:
        """Rebuilding a table breaks foreign keys for a moment, so they are checked at the end."""
        enforced = db.execute("PRAGMA foreign_keys").get
        db.execute("PRAGMA foreign_keys = OFF").fetchall()
        try:
            yield
        except (apsw.Error, OSError) as error:
            raise MigrationFailed(f"{self.what} {shown(file)}: {error}") from error
        finally:
            db.execute(f"PRAGMA foreign_keys = {enforced}").fetchall()


@contextmanager
def _transaction(db: apsw.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _is_exclusive(db: apsw.Connection) -> bool:
    return bool(db.execute("PRAGMA locking_mode").get == "exclusive")


def _back_up(source: apsw.Connection, target: Path, disk: Disk) -> None:
    """Copy a whole database. The copy gets its name when all of it is on the disk."""
    partial = target.with_name(f".{target.name}.partial")
    with suppress(FileNotFoundError):
        disk.unlink(partial)
    descriptor = disk.create(partial, PRIVATE_FILE)
    try:
        with closing(apsw.Connection(str(partial))) as copy:
            with copy.backup("main", source, "main") as backup:
                backup.step()
            # The copy's header says WAL. As one file it must need no other beside it.
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()
        disk.sync(descriptor)
    finally:
        os.close(descriptor)
    disk.rename(partial, target)
    disk.sync_folder(target.parent)
