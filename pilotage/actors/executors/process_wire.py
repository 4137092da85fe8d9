"""What the server and its worker processes say to one another: msgpack behind a length."""

from __future__ import annotations

import msgspec

from pilotage.actors.executors.port import Attempt, Completed, Failed, Logged, Progressed
from pilotage.actors.executors.python_jobs import JobFunction

LENGTH_BYTES = 4
MAX_ORDER_BYTES = 16 << 20
MAX_NEWS_BYTES = 2 << 20


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt and where its function is found.

    `main_file` and `main_module` tell how the server was started, for functions in `__main__`.
    """

    attempt: Attempt
    name: str
    module: str
    qualname: str
    main_file: str | None = None
    main_module: str | None = None


ProcessNews = Completed | Failed | Progressed | Logged

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_news: msgspec.msgpack.Decoder[ProcessNews] = msgspec.msgpack.Decoder(ProcessNews)


def frame(message: Order | ProcessNews) -> bytes:
    data = encode(message)
    return len(data).to_bytes(LENGTH_BYTES) + data


def order_of(attempt: Attempt, name: str, function: JobFunction) -> Order:
    """The order for `function`, which stands at the top of its module."""
    import __main__

    spec = getattr(__main__, "__spec__", None)
    return Order(
        attempt=attempt,
        name=name,
        module=function.__module__,
        qualname=function.__qualname__,
        main_file=getattr(__main__, "__file__", None),
        main_module=None if spec is None else spec.name,
    )
