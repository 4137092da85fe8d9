"""The worker process's side, looked at from within; `test_processes` runs real ones."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pilotage.actors.executors import process_worker
from pilotage.actors.executors.port import Completed, Failed, Logged, Progressed
from pilotage.actors.executors.process_wire import (
    LENGTH_BYTES,
    Order,
    decode_news,
    decode_order,
    frame,
    order_of,
)
from pilotage.actors.executors.process_worker import Worker
from tests.integration.executors import process_functions as functions
from tests.unit.executors.test_invoke import attempt


@pytest.fixture
def links() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set instead of killing this very process."""
    event = threading.Event()
    monkeypatch.setattr(process_worker, "_end", event.set)
    return event


def order(function: Any, data: bytes = b"{}") -> Order:
    return order_of(attempt(data), "job", function)


def received(link: socket.socket) -> Any:
    with link.makefile("rb", buffering=0) as stream:
        size = int.from_bytes(stream.read(LENGTH_BYTES) or b"")
        data = b""
        while len(data) < size:
            data += stream.read(size - len(data)) or b""
    return decode_news.decode(data)


def test_an_order_survives_the_wire() -> None:
    sent = order(functions.double, b'{"n":1}')
    assert decode_order(frame(sent)[LENGTH_BYTES:]) == sent


def test_an_order_is_done_and_its_function_found_once(
    links: tuple[socket.socket, socket.socket],
) -> None:
    worker = Worker(links[1])
    assert worker._do(order(functions.awaited)) == Completed(b'"done"')
    assert worker._job(order(functions.awaited)) is worker._job(order(functions.awaited))
    assert worker._do(order(functions.held_function)) == Completed(b'"held"')


def test_a_function_that_is_not_there_is_final(
    links: tuple[socket.socket, socket.socket],
) -> None:
    def nowhere() -> None: ...

    outcome = Worker(links[1])._do(order(nowhere))
    assert isinstance(outcome, Failed)
    assert outcome.final
    assert "AttributeError" in outcome.error


def test_a_main_module_without_a_file_is_final(
    links: tuple[socket.socket, socket.socket],
) -> None:
    given = Order(attempt=attempt(), name="job", module="__main__", qualname="job")
    outcome = Worker(links[1])._do(given)
    assert isinstance(outcome, Failed)
    assert "put the job in a module" in outcome.error


def test_progress_in_short_order_is_kept_back(
    links: tuple[socket.socket, socket.socket],
) -> None:
    worker = Worker(links[1])
    worker._emit(Progressed(1.0))
    worker._emit(Progressed(2.0))
    worker._emit(Progressed(3.0))
    worker._emit(Logged("info", "x"))
    worker._emit(Completed())
    assert received(links[0]) == Progressed(1.0)
    assert received(links[0]) == Logged("info", "x")
    assert worker._progress_held == Progressed(3.0)


def test_when_the_server_is_gone_the_worker_ends(
    links: tuple[socket.socket, socket.socket], ended: threading.Event
) -> None:
    worker = Worker(links[1])
    links[0].sendall(frame(order(functions.awaited))[:-1])
    links[0].close()
    worker._read()
    assert ended.is_set()
    assert worker._orders.empty(), "half an order is none"

    ended.clear()
    worker._emit(Logged("info", "x"))
    assert ended.is_set()


def test_orders_are_read_one_after_the_other(
    links: tuple[socket.socket, socket.socket], ended: threading.Event
) -> None:
    worker = Worker(links[1])
    given = [order(functions.awaited), order(functions.double, b'{"n":1}')]
    for each in given:
        links[0].sendall(frame(each))
    links[0].close()
    worker._read()
    assert [worker._orders.get(), worker._orders.get()] == given
