"""A database goes forward step by step, whatever ends the program, and never back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest

from piecework.base.migrations import (
    Migration,
    MigrationFailed,
    Schema,
    SchemaTooNew,
    SchemaTooOld,
    script,
)
from tests.support.system.dying_database import deaths

ROWS = 300

SECOND = Schema(
    "the test's database",
    2,
    script(
        "CREATE TABLE owners (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;"
        "CREATE TABLE things (id INTEGER PRIMARY KEY, owner INTEGER NOT NULL"
        " REFERENCES owners (id), size TEXT NOT NULL) STRICT;"
    ),
)


def _sizes_as_numbers(db: apsw.Connection) -> None:
    """A table that others point to is built again, row by row."""
    db.execute(
        "CREATE TABLE wide (id INTEGER PRIMARY KEY, name TEXT NOT NULL, total INTEGER NOT NULL)"
        " STRICT"
    )
    owners: list[Any] = db.execute("SELECT id, name FROM owners").fetchall()
    for number, name in owners:
        sizes: list[Any] = db.execute(
            "SELECT size FROM things WHERE owner = ?", (number,)
        ).fetchall()
        total = sum(int(row[0]) for row in sizes)
        db.execute("INSERT INTO wide VALUES (?, ?, ?)", (number, name, total))
    db.execute("DROP TABLE owners")
    db.execute("ALTER TABLE wide RENAME TO owners")


FOURTH = Schema(
    SECOND.what,
    SECOND.first,
    SECOND.create,
    (
        Migration(3, _sizes_as_numbers),
        Migration(4, script("ALTER TABLE things ADD COLUMN colour TEXT NOT NULL DEFAULT 'grey'")),
    ),
)


def connect(file: Path, *, exclusive: bool = False) -> apsw.Connection:
    db = apsw.Connection(str(file))
    db.set_busy_timeout(5000)
    if exclusive:
        db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    return db


def second(file: Path) -> None:
    """A file at schema 2 with rows."""
    db = connect(file)
    SECOND.prepare(db, file)
    with db:
        db.execute("INSERT INTO owners VALUES (1, 'a'), (2, 'b')")
        for number in range(ROWS):
            db.execute("INSERT INTO things VALUES (?, ?, ?)", (number, 1 + number % 2, str(number)))
    db.close()


def migrate(file: Path) -> None:
    """What a program does with a file that it finds."""
    db = connect(file)
    FOURTH.prepare(db, file)
    db.close()


def contents(file: Path) -> Any:
    """Schema, owners and the number of things."""
    db = connect(file)
    found = (
        FOURTH.version(db),
        db.execute("SELECT * FROM owners ORDER BY id").fetchall(),
        db.execute("SELECT count(*), sum(size) FROM things").fetchall(),
    )
    db.close()
    return found


MIGRATED = (4, [(1, "a", 22350), (2, "b", 22500)], [(300, 44850)])
BEFORE = (2, [(1, "a"), (2, "b")], [(300, 44850)])


def test_a_new_file_goes_through_every_step_and_needs_no_backup(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    migrate(file)
    assert contents(file)[0] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]


@pytest.mark.parametrize("exclusive", [False, True], ids=["shared", "exclusive"])
def test_an_old_file_comes_forward_and_its_copy_stays_beside_it(
    tmp_path: Path, exclusive: bool
) -> None:
    file = tmp_path / "x.db"
    second(file)
    db = connect(file, exclusive=exclusive)
    FOURTH.prepare(db, file)
    db.close()
    assert contents(file) == MIGRATED
    backup = FOURTH.backup_of(file, 2)
    assert contents(backup) == BEFORE
    assert backup.stat().st_mode & 0o777 == 0o600


def test_foreign_keys_are_enforced_again_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    second(file)
    db = connect(file)
    FOURTH.prepare(db, file)
    with pytest.raises(apsw.ConstraintError):
        db.execute("INSERT INTO things (id, owner, size) VALUES (999, 77, '1')")


def test_a_newer_file_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    migrate(file)
    before = file.read_bytes()
    with pytest.raises(SchemaTooNew, match=r"x\.db has schema 4.*knows schema 2"):
        SECOND.prepare(connect(file), file)
    assert file.read_bytes() == before


def test_a_file_from_before_the_first_kept_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    connect(file).execute("CREATE TABLE meta (key TEXT)").fetchall()
    with pytest.raises(SchemaTooOld, match="has schema 1, from before schemas were kept"):
        FOURTH.prepare(connect(file), file)
    assert list(tmp_path.glob("*.backup")) == []


def test_a_step_that_breaks_a_reference_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    second(file)
    broken = Schema(
        SECOND.what, 2, SECOND.create, (Migration(3, script("DELETE FROM owners WHERE id = 2")),)
    )
    with pytest.raises(MigrationFailed, match="150 rows name rows that are not there"):
        broken.prepare(connect(file), file)
    assert contents(file) == BEFORE


def test_steps_without_a_number_in_order_are_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="one by one"):
        Schema("x", 2, script(""), (Migration(4, script("")),))


@pytest.mark.process
@pytest.mark.kill
def test_a_kill_before_any_write_leaves_a_file_that_goes_on(tmp_path: Path) -> None:
    """Every write, sync and truncation of the file, its log and its backup."""
    source, folder = tmp_path / "source.db", tmp_path / "killed"
    second(source)
    died = deaths("tests.unit.base.test_migrations:migrate", source, folder)
    seen = set()
    assert died > 20
    for number in range(died + 1):
        file = folder / f"{number}.db"
        db = connect(file)
        seen.add(FOURTH.version(db))
        db.close()
        migrate(file)
        assert contents(file) == MIGRATED
        assert contents(FOURTH.backup_of(file, 2)) == BEFORE
    assert seen == {2, 3, 4}
