"""An embedded server that hangs, or an earlier one: woken, ended in order, in the end killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilotage.persistence import embedded
from pilotage.persistence.embedded import EmbeddedServer, EmbeddedServerError
from tests.integration.embedded_kit import WRITER, is_alive, read, suspend, write
from tests.support.programs import fake_program
from tests.support.waiting import wait_until

# Answers, and heeds no signal that could be heeded.
STUBBORN_SERVER = """
import re, signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = re.search('unixsocket "(.*)"', open(sys.argv[1]).read())[1]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    peer, _ = listener.accept()
    peer.recv(100)
    peer.sendall(b"+PONG\\r\\n")
    peer.close()
"""


@pytest.fixture
async def server(data_dir: Path) -> AsyncIterator[EmbeddedServer]:
    server = EmbeddedServer(data_dir)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def stubborn(tmp_path: Path) -> Path:
    (tmp_path / "stubborn.py").write_text(STUBBORN_SERVER)
    return fake_program(
        tmp_path,
        '[ "$1" = --version ] && echo v=9.0.0 && exit\n'
        f'exec {sys.executable} {tmp_path}/stubborn.py "$1"',
    )


async def test_an_orphan_that_does_not_notice_is_ended(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ORPHAN_SECS", 0.05)
    first = EmbeddedServer(data_dir)
    await first.start()
    write(first, "k", "v")
    orphan = first.pid
    assert orphan is not None
    # The owner's lock is gone, the leash is not: as if the watcher had not noticed.
    assert first._owner_fd is not None
    os.close(first._owner_fd)
    first._owner_fd = None

    second = EmbeddedServer(data_dir)
    await second.start()
    assert not is_alive(orphan)
    assert read(second, "k") == "v"
    await second.stop()
    await first.stop()


async def test_an_orphan_that_hangs_is_killed(
    data_dir: Path, stubborn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ORPHAN_SECS", 0.05)
    monkeypatch.setattr(embedded, "ORPHAN_END_SECS", 0.2)
    first = EmbeddedServer(data_dir, binary=stubborn)
    await first.start()
    assert first._owner_fd is not None
    os.close(first._owner_fd)
    first._owner_fd = None

    second = EmbeddedServer(data_dir)
    await second.start()
    write(second, "k", "v")
    await second.stop()
    await first.stop()


@pytest.mark.parametrize("watcher", [False, True])
async def test_a_suspended_orphan_is_ended_in_order(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, *, watcher: bool
) -> None:
    """In order: it is not killed, for which the test would wait longer than it may last."""
    monkeypatch.setattr(embedded, "ORPHAN_SECS", 0.05)
    monkeypatch.setattr(embedded, "ORPHAN_END_SECS", 3600)
    first = EmbeddedServer(data_dir)
    await first.start()
    write(first, "k", "v")
    suspend(first, watcher=watcher)
    assert first._owner_fd is not None
    os.close(first._owner_fd)
    first._owner_fd = None

    second = EmbeddedServer(data_dir)
    await second.start()
    assert read(second, "k") == "v"
    await second.stop()
    await first.stop()


async def test_a_suspended_server_of_a_killed_parent_ends(data_dir: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(data_dir)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    os.kill(orphan, signal.SIGSTOP)
    parent.kill()
    parent.stdout.close()
    parent.wait()
    await wait_until(lambda: not is_alive(orphan), "the orphan ended", within_secs=30)


@pytest.mark.parametrize("watcher", [False, True])
async def test_a_suspended_server_is_stopped_in_order(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, *, watcher: bool
) -> None:
    monkeypatch.setattr(embedded, "END_SECS", 3600)
    server = EmbeddedServer(data_dir)
    await server.start()
    write(server, "k", "v")
    suspend(server, watcher=watcher)
    await server.stop()
    await server.start()
    assert read(server, "k") == "v"
    await server.stop()


@pytest.mark.parametrize("watcher", [False, True])
async def test_a_suspended_server_is_silent_until_it_is_woken(
    server: EmbeddedServer, *, watcher: bool
) -> None:
    assert await server.answers()
    suspend(server, watcher=watcher)
    assert not await server.answers()
    server.wake()
    await wait_until(server.answers, "it answers")


async def test_a_server_that_is_not_there_is_not_silent_and_cannot_be_woken(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    for _ in range(2):
        assert await server.answers()
        server.wake()
        server.kill()
        await server.start()
        await server.stop()


async def test_a_hung_server_can_be_killed_and_its_successor_has_the_data(
    server: EmbeddedServer,
) -> None:
    write(server, "k", "v")
    suspend(server, watcher=True)
    server.kill()
    await server.wait_died()
    server.kill()  # again: nothing happens
    server.wake()
    await server.restart()
    assert read(server, "k") == "v"


async def test_a_server_that_will_not_end_is_killed_and_that_is_said(
    data_dir: Path, stubborn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "END_SECS", 0.1)
    server = EmbeddedServer(data_dir, binary=stubborn)
    await server.start()
    with pytest.raises(EmbeddedServerError, match="was killed; what it had answered is kept"):
        await server.stop()
    after = EmbeddedServer(data_dir)
    await after.start()  # it has the directory
    monkeypatch.undo()
    await after.stop()
