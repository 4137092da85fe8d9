"""The embedded server: what it keeps, whom it lets in, and when it ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pilotage.persistence import embedded
from pilotage.persistence.embedded import (
    DataDirInUseError,
    EmbeddedServer,
    EmbeddedServerError,
    socket_path,
)
from tests.integration.embedded_kit import WRITER, client_of, is_alive, read, write
from tests.support.programs import fake_program
from tests.support.waiting import wait_until


@pytest.fixture
async def server(data_dir: Path) -> AsyncIterator[EmbeddedServer]:
    server = EmbeddedServer(data_dir)
    await server.start()
    yield server
    await server.stop()


async def test_what_was_written_is_there_after_stop_and_start(server: EmbeddedServer) -> None:
    write(server, "k", "v")
    first = server.pid
    await server.stop()
    assert server.pid is None
    await server.start()
    assert server.pid not in {None, first}
    assert read(server, "k") == "v"


async def test_start_twice_is_one_server(server: EmbeddedServer) -> None:
    pid = server.pid
    assert await server.start() == server.url
    assert server.pid == pid


async def test_stop_ends_the_process_and_frees_the_directory(server: EmbeddedServer) -> None:
    pid = server.pid
    assert pid is not None
    await server.stop()
    assert not is_alive(pid)
    other = EmbeddedServer(server.data_dir)
    await other.start()
    await other.stop()
    await other.stop()  # nothing to do is no error


async def test_the_server_is_durable_private_and_never_evicts(server: EmbeddedServer) -> None:
    with client_of(server) as client:
        found = client.config_get("append*", "maxmemory-policy", "save", "port")
    assert found["appendonly"] == "yes"
    assert found["appendfsync"] == "no", "it writes before each answer; forcing is ours"
    assert found["maxmemory-policy"] == "noeviction"
    assert found["save"] == ""
    assert found["port"] == "0"
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket_path(server.data_dir).stat().st_mode) == 0o700


async def test_a_killed_server_is_noticed_and_its_successor_has_the_data(
    server: EmbeddedServer,
) -> None:
    write(server, "k", "v")
    died = asyncio.create_task(server.wait_died())
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    ended = await died
    assert not ended.expected
    assert ended.status == 128 + signal.SIGKILL
    assert str(ended) == "killed by signal 9"
    assert server.pid is None
    await server.restart()
    assert read(server, "k") == "v"


async def test_a_server_that_ends_because_we_asked_is_expected(server: EmbeddedServer) -> None:
    died = asyncio.create_task(server.wait_died())
    await wait_until(lambda: server.pid is not None, "the server runs")
    await server.stop()
    ended = await died
    assert ended.expected
    assert ended.status == 0
    assert str(ended) == "exit status 0"


async def test_restart_of_a_living_server_keeps_the_data(server: EmbeddedServer) -> None:
    write(server, "k", "v")
    before = server.pid
    await server.restart()
    assert server.pid != before
    assert read(server, "k") == "v"


async def test_a_killed_watcher_does_not_leave_two_servers(server: EmbeddedServer) -> None:
    write(server, "k", "v")
    orphan, watcher = (server.data_dir / "server.lock").read_text().split()
    os.kill(int(watcher), signal.SIGKILL)
    ended = await server.wait_died()
    assert ended.status is None
    assert str(ended) == "its watcher was killed"
    await server.restart()
    assert not is_alive(int(orphan))
    assert read(server, "k") == "v"


async def test_a_second_owner_is_refused_and_told_who_holds_it(server: EmbeddedServer) -> None:
    write(server, "k", "v")
    with pytest.raises(DataDirInUseError) as refused:
        await EmbeddedServer(server.data_dir).start()
    assert refused.value.holder == os.getpid()
    assert f"process {os.getpid()}" in str(refused.value)
    assert "--data-dir" in str(refused.value)
    assert read(server, "k") == "v"  # the first is untouched


async def test_a_holder_that_left_no_pid_is_still_a_holder(data_dir: Path) -> None:
    data_dir.mkdir()
    with (data_dir / "owner.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataDirInUseError, match="in use by another process") as refused:
            await EmbeddedServer(data_dir).start()
    assert refused.value.holder is None


async def test_kill_9_of_the_parent_loses_nothing_and_leaves_nobody(data_dir: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(data_dir)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    answered = [int(parent.stdout.readline()) for _ in range(200)]
    parent.kill()
    answered += [int(line) for line in parent.stdout.read().split()]
    parent.stdout.close()
    parent.wait()

    server = EmbeddedServer(data_dir)  # at once: it has to wait for the orphan by itself
    await server.start()
    assert not is_alive(orphan)
    with client_of(server) as client:
        # The last line may be torn by the kill, a torn number only names an earlier key.
        assert client.dbsize() >= max(answered)
        assert client.mget([f"k{n}" for n in answered]) == ["x" * 300] * len(answered)
    await server.stop()


async def test_the_server_ends_soon_after_a_killed_parent(data_dir: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(data_dir)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    parent.kill()
    parent.stdout.close()
    parent.wait()
    await wait_until(lambda: not is_alive(orphan), "the orphan ended", within_secs=5)


async def test_a_lock_whose_holder_is_unknown_is_an_error(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ORPHAN_SECS", 0.02)
    monkeypatch.setattr(embedded, "ORPHAN_END_SECS", 0.02)
    data_dir.mkdir()
    with (data_dir / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = EmbeddedServer(data_dir)
        with pytest.raises(EmbeddedServerError, match="does not end"):
            await server.start()
    await server.start()  # the failure gave the directory back
    await server.stop()


@pytest.fixture
def short_temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory with a path short enough for sockets, used as the system's."""
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        yield Path(folder)


async def test_a_start_that_is_given_up_leaves_nothing_behind(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    starting = asyncio.create_task(server.start())
    note = data_dir / "server.lock"
    await wait_until(lambda: note.exists() and note.read_text() != "", "the server is started")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert server.pid is None
    await server.start()
    await server.stop()


async def test_a_path_too_long_for_a_socket_works(tmp_path: Path, short_temp: Path) -> None:
    long_dir = tmp_path / ("d" * 60) / ("e" * 60)
    server = EmbeddedServer(long_dir)
    await server.start()
    socket = socket_path(long_dir)
    assert socket.is_relative_to(short_temp)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    write(server, "k", "v")
    assert read(server, "k") == "v"
    await server.stop()


def test_the_short_socket_path_is_short_even_when_the_temporary_directory_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/" + "t" * 90)
    path = socket_path(Path("/" + "d" * 120))
    assert len(os.fsencode(path)) <= embedded.MAX_SOCKET_BYTES
    assert path != socket_path(Path("/" + "e" * 120))


async def test_a_shared_socket_folder_is_refused(tmp_path: Path, short_temp: Path) -> None:
    folder = short_temp / f"pilotage-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match="not a directory of this user alone"):
        await EmbeddedServer(tmp_path / ("d" * 120)).start()


async def test_names_with_spaces_and_quotes_work(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / 'my "data" \\ 100% #1')
    await server.start()
    write(server, "k", "v")
    assert read(server, "k") == "v"
    await server.stop()
    assert (server.data_dir / "appendonlydir").is_dir()


async def test_a_relative_directory_is_fixed_when_the_server_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert EmbeddedServer(Path("data")).data_dir == tmp_path / "data"


async def test_a_directory_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError, match=r"cannot be used: .*--data-dir"):
        await EmbeddedServer(tmp_path / "file" / "data").start()


async def test_waiting_for_the_end_of_a_server_that_never_ran_is_an_error(data_dir: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="not been started"):
        await EmbeddedServer(data_dir).wait_died()


async def test_broken_data_is_reported_with_the_words_of_the_server(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    await server.start()
    await server.stop()
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(EmbeddedServerError, match=r"(?s)ended at once: .*last words:.*manifest"):
        await server.start()


async def test_a_long_log_is_put_aside(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MAX_LOG_BYTES", 100)
    server = EmbeddedServer(data_dir)
    await server.start()
    first = (data_dir / "server.log").read_bytes()
    await server.restart()
    assert (data_dir / "server.log.1").read_bytes().startswith(first)
    await server.stop()


async def test_a_server_that_never_answers_is_given_up(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_SECS", 0.1)
    mute = fake_program(
        tmp_path,
        f'[ "$1" = --version ] && echo v=9.0.0 && exit\necho hello\nexec {sys.executable} -c '
        "'import signal; signal.pause()'",
    )
    server = EmbeddedServer(data_dir, binary=mute)
    with pytest.raises(EmbeddedServerError, match=r"(?s)did not answer within 0.1 s.*hello"):
        await server.start()
    assert server.pid is None


# Takes longer to load than a server may take to answer at all.
LOADING_SERVER = """
import re, socket, sys, time
path = re.search('unixsocket "(.*)"', open(sys.argv[1]).read())[1]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
loaded_at = time.monotonic() + 1.5
while True:
    peer, _ = listener.accept()
    peer.recv(100)
    loaded = time.monotonic() > loaded_at
    peer.sendall(b"+PONG\\r\\n" if loaded else b"-LOADING the data\\r\\n")
    peer.close()
"""


async def test_a_server_that_loads_its_data_is_waited_for(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_SECS", 1.0)
    (tmp_path / "loading.py").write_text(LOADING_SERVER)
    program = fake_program(
        tmp_path,
        '[ "$1" = --version ] && echo v=9.0.0 && exit\n'
        f'exec {sys.executable} {tmp_path}/loading.py "$1"',
    )
    server = EmbeddedServer(data_dir, binary=program)
    await server.start()
    assert server.pid is not None
    await server.stop()
