"""Files are whole or absent, private ones are private, and every failure is one line."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from piecework.base.files import (
    FileError,
    FileExists,
    SystemDisk,
    private_folder,
    read,
    write_private,
    write_public,
)
from tests.support.system.dying_writer import CONTENT

ROOT = Path(__file__).parents[3]
OLD = b"old content"


class BrokenDisk(SystemDisk):
    """The machine's disk, on which some steps fail with an error number."""

    def __init__(self, **failing: int) -> None:
        self._failing = failing

    def _check(self, step: str) -> None:
        if step in self._failing:
            raise OSError(self._failing[step], os.strerror(self._failing[step]))

    def write(self, descriptor: int, data: bytes) -> int:
        self._check("write")
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._check("sync")
        super().sync(descriptor)

    def link(self, old: Path, new: Path) -> None:
        self._check("link")
        super().link(old, new)

    def rename(self, old: Path, new: Path) -> None:
        self._check("rename")
        super().rename(old, new)


class SomebodyElses(SystemDisk):
    """A disk on which every folder belongs to another user."""

    def owner(self, path: Path) -> int:
        return os.geteuid() + 4321


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_has_its_content_and_is_closed_to_others(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert mode_of(tmp_path / "key") == 0o600
    assert names(tmp_path) == ["key"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_the_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_private(tmp_path / "key", b"secret")
        write_public(tmp_path / "deployment.json", b"{}")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "key") == 0o600
    assert mode_of(tmp_path / "deployment.json") == 0o644


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    write_private(tmp_path / "empty", b"")
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    write_private(tmp_path / "key", OLD)
    with pytest.raises(FileExists, match="exists already and is not overwritten"):
        write_private(tmp_path / "key", b"other")
    assert (tmp_path / "key").read_bytes() == OLD


def test_a_link_that_leads_nowhere_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExists):
        write_private(tmp_path / "key", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_replacing_takes_the_place_of_the_old_file_and_of_its_mode(tmp_path: Path) -> None:
    write_public(tmp_path / "key", OLD)
    write_private(tmp_path / "key", b"new", replace=True)
    assert (tmp_path / "key").read_bytes() == b"new"
    assert mode_of(tmp_path / "key") == 0o600


def test_of_many_writers_at_once_one_wins_and_its_file_is_whole(tmp_path: Path) -> None:
    def attempt(number: int) -> bool:
        try:
            write_private(tmp_path / "key", bytes([number]) * 100_000)
        except FileExists:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = [n for n, ok in enumerate(pool.map(attempt, range(64))) if ok]
    assert len(won) == 1
    assert (tmp_path / "key").read_bytes() == bytes(won) * 100_000
    assert names(tmp_path) == ["key"]


def test_many_who_replace_at_once_all_succeed(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(
            pool.map(
                lambda n: write_private(tmp_path / "key", bytes([n]) * 50_000, replace=True),
                range(64),
            )
        )
    content = (tmp_path / "key").read_bytes()
    assert content == content[:1] * 50_000
    assert names(tmp_path) == ["key"]


def run_and_die(file: Path, step: int, mode: str) -> int:
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "tests.support.system.dying_writer",
            str(file),
            str(step),
            mode,
        ],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.parametrize("mode", ["exclusive", "replace"])
@pytest.mark.process
@pytest.mark.kill
def test_a_kill_at_any_step_leaves_nothing_or_a_whole_file(tmp_path: Path, mode: str) -> None:
    """And the write can be repeated, after which no leftover is there."""
    before = OLD if mode == "replace" else None
    seen = set()
    for step in range(20):
        home = tmp_path / str(step)
        home.mkdir()
        file = home / "wallet.json"
        if before is not None:
            file.write_bytes(before)
        code = run_and_die(file, step, mode)
        found = file.read_bytes() if file.exists() else None
        assert found in (before, CONTENT)
        seen.add(found)
        try:
            write_private(file, CONTENT, replace=mode == "replace")
        except FileExists:
            assert found == CONTENT
        assert file.read_bytes() == CONTENT
        assert names(home) == ["wallet.json"]
        if code == 0:
            assert step >= 7
            break
    else:
        pytest.fail("the write has more steps than were tried")
    assert seen == {before, CONTENT}


def test_a_leftover_that_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    class Interleaved(SystemDisk):
        """Another write to the same name comes in the middle of this one."""

        def sync(self, descriptor: int) -> None:
            write_private(tmp_path / "key", b"other", replace=True)
            super().sync(descriptor)

    write_private(tmp_path / "key", b"mine", replace=True, disk=Interleaved())
    assert (tmp_path / "key").read_bytes() == b"mine"
    assert names(tmp_path) == ["key"]


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "key.tmp").write_bytes(b"")
    (tmp_path / ".other-00.tmp").write_bytes(b"")
    write_private(tmp_path / "key", b"secret")
    assert names(tmp_path) == [".other-00.tmp", "key", "key.tmp"]


@pytest.mark.parametrize(
    ("step", "replace"),
    [
        ("write", False),
        ("sync", False),
        ("link", False),
        ("write", True),
        ("sync", True),
        ("rename", True),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    tmp_path: Path, step: str, replace: bool
) -> None:
    file = tmp_path / "key"
    if replace:
        file.write_bytes(OLD)
    with pytest.raises(FileError) as caught:
        write_private(file, b"new", replace=replace, disk=BrokenDisk(**{step: errno.ENOSPC}))
    assert str(caught.value) == f"cannot write {file}: no space left on device"
    assert (file.read_bytes() if file.exists() else None) == (OLD if replace else None)
    assert names(tmp_path) == (["key"] if replace else [])


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_volume_without_hard_links_takes_the_file_too(tmp_path: Path, number: int) -> None:
    disk = BrokenDisk(link=number)
    write_private(tmp_path / "key", b"secret", disk=disk)
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert names(tmp_path) == ["key"]
    with pytest.raises(FileExists):
        write_private(tmp_path / "key", b"other", disk=disk)


def test_the_longest_name_that_a_disk_takes_can_be_written(tmp_path: Path) -> None:
    write_private(tmp_path / ("n" * 255), b"x")
    assert read(tmp_path / ("n" * 255), 1) == b"x"


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="file name too long"):
        write_private(tmp_path / ("n" * 256), b"x")
    assert names(tmp_path) == []


@pytest.mark.parametrize("path", ["/no/such/folder/key", "/dev/null/key", "/proc/key", "/a\0b/key"])
def test_a_place_that_takes_no_file_is_one_line(path: str) -> None:
    with pytest.raises(FileError) as caught:
        write_private(Path(path), b"x")
    assert str(caught.value).startswith("cannot write /")
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_writing_over_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="directory"):
        write_private(tmp_path, b"x", replace=True)


def test_reading_is_bounded_and_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert read(tmp_path / "f", 5) == b"12345"
    with pytest.raises(FileError, match=r"f is larger than 4 bytes"):
        read(tmp_path / "f", 4)
    with pytest.raises(FileError, match=r"cannot read .*none: no such file or directory"):
        read(tmp_path / "none", 4)
    with pytest.raises(FileError, match="is a directory"):
        read(tmp_path, 4)
    with pytest.raises(FileError, match="is larger than 100 bytes"):
        read(Path("/dev/zero"), 100)


def test_a_private_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    private_folder(tmp_path / "a" / "b")
    assert mode_of(tmp_path / "a" / "b") == 0o700
    private_folder(tmp_path / "a" / "b")


def test_an_open_folder_of_ours_is_closed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    private_folder(tmp_path / "home")
    assert mode_of(tmp_path / "home") == 0o700


def test_an_open_folder_with_files_of_others_is_neither_taken_nor_closed(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project").chmod(0o755)
    (tmp_path / "project" / "main.py").touch()
    with pytest.raises(FileError, match="holds other files, and other users may enter it"):
        private_folder(tmp_path / "project", marks=("wallet.json",))
    assert mode_of(tmp_path / "project") == 0o755


@pytest.mark.parametrize("name", ["wallet.json", "lost+found"])
def test_a_restored_home_and_a_fresh_volume_are_closed(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    (home / name).mkdir(parents=True)
    home.chmod(0o755)
    private_folder(home, marks=("wallet.json",))
    assert mode_of(home) == 0o700


def test_a_closed_folder_may_hold_other_files(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "notes").touch()
    private_folder(home)
    assert mode_of(home) == 0o700


def test_a_folder_can_be_entered_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        private_folder(tmp_path / "home")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "home") == 0o700


def test_a_folder_of_somebody_else_is_refused_and_both_are_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    with pytest.raises(FileError) as caught:
        private_folder(home, disk=SomebodyElses())
    line = str(caught.value)
    assert line.startswith(f"{home} belongs to uid {os.geteuid() + 4321}, this program runs as ")
    assert mode_of(home) == 0o755


def test_a_folder_for_everybody_is_not_closed(tmp_path: Path) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(FileError, match="a folder for everybody"):
        private_folder(shared)
    assert mode_of(shared) == 0o1777


@pytest.mark.parametrize("path", ["/proc/x", "/dev/null", "/dev/null/x", "/a\0b"])
def test_a_folder_that_cannot_be_made_is_one_line(path: str) -> None:
    with pytest.raises(FileError) as caught:
        private_folder(Path(path))
    assert str(caught.value).startswith("cannot make the folder /")
    assert "\n" not in str(caught.value)
