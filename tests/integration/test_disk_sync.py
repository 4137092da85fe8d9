"""Who forces the embedded server's file to disk, and what a kill costs while the disk is slow."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pilotage.persistence import disk_sync
from pilotage.persistence.disk_sync import DiskSync, force
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.server_process import find_server_binary
from pilotage.settings import FsyncPolicy
from tests.integration.embedded_kit import client_of, write
from tests.support.programs import fake_program
from tests.support.waiting import wait_until

SLOW = "strace -f -qq -o /dev/null -e trace=fdatasync -e inject=fdatasync:delay_enter=1200000"


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Inode and size of what was forced, in order; it is looked often."""
    seen: list[tuple[int, int]] = []

    def note(fd: int) -> None:
        found = os.fstat(fd)
        seen.append((found.st_ino, found.st_size))
        os.fsync(fd)

    monkeypatch.setattr(disk_sync, "_force_fd", note)
    monkeypatch.setattr(disk_sync, "SYNC_SECS", 0.01)
    return seen


def newest(data_dir: Path) -> Path:
    files = (data_dir / "appendonlydir").glob("*.incr.aof")
    return max(files, key=lambda path: int(path.name.split(".")[-3]))


def whole(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_size


async def test_what_was_written_is_forced_also_after_a_rewrite(
    data_dir: Path, forced: list[tuple[int, int]]
) -> None:
    server = EmbeddedServer(data_dir)
    await server.start()
    write(server, "k", "v")
    first = newest(data_dir)
    await wait_until(lambda: whole(first) in forced, "it is on the disk")
    with client_of(server) as client:
        client.bgrewriteaof()
    await wait_until(lambda: newest(data_dir) != first, "there is a new file")
    write(server, "k", "w")
    await wait_until(lambda: whole(newest(data_dir)) in forced, "it is on the disk, too")
    await server.restart()
    write(server, "k", "x")
    await wait_until(lambda: whole(newest(data_dir)) in forced, "that of a new server, too")
    await server.stop()
    assert "Calling fsync() on the AOF file" in (data_dir / "server.log").read_text()


def test_what_has_not_grown_is_not_forced_again(
    tmp_path: Path, forced: list[tuple[int, int]]
) -> None:
    (tmp_path / "appendonlydir").mkdir()
    files = [
        tmp_path / "appendonly.aof",  # of a server before Redis 7
        tmp_path / "appendonlydir" / "appendonly.aof.1.incr.aof",
        tmp_path / "appendonlydir" / "appendonly.aof.2.incr.aof",
    ]
    for path in files:
        path.write_bytes(b"1")
    sizes = force(tmp_path, {})
    assert sizes == dict.fromkeys(files, 1)
    assert sorted(forced) == sorted(map(whole, files))
    forced.clear()
    files[1].unlink()
    files[2].write_bytes(b"22")
    assert force(tmp_path, sizes) == {files[0]: 1, files[2]: 2}
    assert forced == [whole(files[2])]


@pytest.mark.parametrize(("policy", "of_server"), [("always", "always"), ("no", "no")])
async def test_other_policies_are_left_to_the_server(
    data_dir: Path, policy: FsyncPolicy, of_server: str
) -> None:
    server = EmbeddedServer(data_dir, fsync=policy)
    await server.start()
    with client_of(server) as client:
        assert client.config_get("appendfsync") == {"appendfsync": of_server}
    assert server._sync is None
    await server.stop()


async def test_a_disk_that_fails_is_named_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "appendonly.aof").write_bytes(b"1")
    tries: list[int] = []

    def fails(fd: int) -> None:
        tries.append(fd)
        if len(tries) != 4:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk_sync, "_force_fd", fails)
    monkeypatch.setattr(disk_sync, "SYNC_SECS", 0.001)
    sync = DiskSync(tmp_path)
    await wait_until(lambda: len(tries) >= 4, "it is tried again")
    (tmp_path / "appendonly.aof").write_bytes(b"22")
    await wait_until(lambda: len(tries) >= 7, "and goes on")
    sync.end()
    await wait_until(lambda: not sync.alive, "it has ended")
    said = [record.message for record in caplog.records]
    assert len(said) == 2, "once for each time that it began to fail"
    assert "cannot be forced to disk ([Errno 5] Input/output error)" in said[0]


def traced() -> bool:
    """Whether this machine lets its disk look slow."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run([*SLOW.split(), "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not traced(), reason="strace makes the disk slow")
async def test_a_kill_costs_nothing_that_was_answered_while_the_disk_was_busy(
    data_dir: Path, tmp_path: Path
) -> None:
    slow = fake_program(
        tmp_path,
        f'[ "$1" = --version ] && echo v=9.0.0 && exit\n{SLOW} {find_server_binary()} "$@"',
    )
    server = EmbeddedServer(data_dir, binary=slow)
    await server.start()
    answered = 0

    def fill(more: Callable[[], bool]) -> int:
        count = 0
        with client_of(server) as client:
            while more():
                client.set(f"k{answered + count}", "v")
                count += 1
        return count

    clock = asyncio.get_running_loop().time
    until = clock() + 2.5  # the server would begin to force within one second, for 1.2 s
    answered += await asyncio.to_thread(fill, lambda: clock() < until)
    process = server._process
    assert process is not None
    os.killpg(process.group, signal.SIGKILL)
    await server.wait_died()
    server._binary = None
    await server.restart()
    with client_of(server) as client:
        assert client.dbsize() == answered
    await server.stop()
