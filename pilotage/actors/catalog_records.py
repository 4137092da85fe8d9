"""Typed access to one kind of stored definition, with a bounded cache.

One process owns the store and writes pass through here, so what is cached holds; a read that
overlaps a write never fills the cache, nor does one while it is not known what became of a write
(`catalog_doubts`). Store errors become the errors a caller may be told.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Generic, Protocol, TypeVar

import msgspec

from pilotage.actors.catalog_doubts import Doubt, Doubts, Look
from pilotage.actors.errors import ConflictError, UnavailableError
from pilotage.persistence.codec import SnapshotError
from pilotage.persistence.port import (
    BoundReachedError,
    FencedError,
    IdempotencyRecord,
    Record,
    RevisionError,
    SlugTakenError,
    Store,
    StoreUnavailableError,
)

logger = logging.getLogger(__name__)

Position = tuple[int, str]
"""(created_at_ms, id) of the last row of a page."""

MAX_SLUGS = 20_000
"""Slugs remembered, absent ones included, of one kind."""


def new_id(now_ms: int) -> str:
    """A UUIDv7 (RFC 9562) of the time and 74 random bits."""
    noise = int.from_bytes(os.urandom(10), "big")  # drawn at once: each request has an id
    value = (now_ms & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | (noise & 0xFFF) << 64
    text = f"{value | 0b10 << 62 | noise >> 18:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@contextmanager
def catalog_errors(what: str) -> Generator[None, None, None]:
    """Store errors as what a caller may be told."""
    try:
        yield
    except SlugTakenError as exc:
        raise ConflictError(
            f'there is a {what} with slug "{exc.slug}" in this project already; '
            "choose another slug or change that one"
        ) from exc
    except RevisionError as exc:
        raise ConflictError(
            f"the {what} was changed or deleted meanwhile; read it again and repeat"
        ) from exc
    except FencedError as exc:
        raise UnavailableError("another server has taken over; ask that one", 5) from exc
    except BoundReachedError as exc:
        raise UnavailableError(str(exc), 60) from exc
    except StoreUnavailableError as exc:
        raise UnavailableError("the store is away; try again") from exc
    except SnapshotError as exc:
        raise ConflictError(f"the {what} cannot be read: {exc}") from exc


class Filed(Protocol):
    """What a stored definition must say about itself."""

    @property
    def id(self) -> str: ...
    @property
    def project_id(self) -> str: ...
    @property
    def created_at_ms(self) -> int: ...


T = TypeVar("T", bound=Filed)


class Filing(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """How one kind is kept: its encoding, and how many bytes of it (encoded) are cached."""

    kind: str
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    cache_bytes: int = 16 << 20


class Shelf(Generic[T]):
    """One kind of definition. Lookups by id and by slug are cached, absent slugs too.

    `partition` is what lists and slugs are kept by: the project, or for versions the workflow.
    `look` tells whoever goes by a definition what is stored, after a change that the store did not
    answer; without it nobody does.
    """

    def __init__(
        self,
        store: Store,
        filing: Filing[T],
        fence: Callable[[], int],
        look: Look | None = None,
    ) -> None:
        self._store = store
        self._filing = filing
        self._fence = fence
        self._items: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._bytes = 0
        self._slugs: OrderedDict[tuple[str, str], str | None] = OrderedDict()
        self._writes = 0
        self.doubts = None if look is None else Doubts(look)

    def cached(self, item_id: str) -> T | None:
        """The definition, if it is in memory."""
        cached = self._items.get(item_id)
        if cached is None:
            return None
        self._items.move_to_end(item_id)
        return cached[0]

    def cached_slug(self, partition: str, slug: str) -> T | None:
        """The definition with that slug, if it is in memory."""
        known = self._slugs.get((partition, slug))
        return None if known is None else self.cached(known)

    async def get(self, item_id: str) -> T | None:
        cached = self.cached(item_id)
        if cached is not None:
            return cached
        seen = self._writes
        with catalog_errors(self._filing.kind):
            record = await self._store.get_record(self._filing.kind, item_id)
        if record is None:
            return None
        with catalog_errors(self._filing.kind):
            item = self._filing.decode(record.data)
        if seen == self._writes:
            self._cache(item, len(record.data))
        return item

    async def find(self, partition: str, slug: str) -> T | None:
        """The definition with that slug."""
        where = (partition, slug)
        if where in self._slugs:
            self._slugs.move_to_end(where)
            known = self._slugs[where]
            return None if known is None else await self.get(known)
        seen = self._writes
        with catalog_errors(self._filing.kind):
            found = await self._store.find_slug(self._filing.kind, partition, slug)
        if seen == self._writes and not self.doubts:
            self._slugs[where] = found
            if len(self._slugs) > MAX_SLUGS:
                self._slugs.popitem(last=False)
        return None if found is None else await self.get(found)

    def record(
        self, item: T, partition: str, *, slug: str | None = None, revision: int = 1
    ) -> Record:
        """What the store keeps of it."""
        return Record(
            kind=self._filing.kind,
            project_id=partition,
            id=item.id,
            data=self._filing.encode(item),
            revision=revision,
            slug=slug,
            created_at_ms=item.created_at_ms,
        )

    async def put(
        self,
        item: T,
        partition: str,
        *,
        slug: str | None = None,
        old_slug: str | None = None,
        revision: int = 1,
        idempotency: IdempotencyRecord | None = None,
        beside: Record | None = None,
    ) -> None:
        """Create (revision 1) or replace, together with what is new `beside` it. Raises
        `ConflictError`, `UnavailableError`.
        """
        record = self.record(item, partition, slug=slug, revision=revision)
        self._forget(item.id)
        try:
            with (
                catalog_errors(self._filing.kind),
                self._unless_known(item.id, partition, slug, old_slug),
            ):
                await self._store.put_record(record, self._fence(), idempotency, beside)
        finally:
            self._forget(item.id)
        self._cache(item, len(record.data))

    async def delete(self, item_id: str, partition: str = "", slug: str | None = None) -> bool:
        self._forget(item_id)
        try:
            with catalog_errors(self._filing.kind), self._unless_known(item_id, partition, slug):
                return await self._store.delete_record(self._filing.kind, item_id, self._fence())
        finally:
            self._forget(item_id)

    def _unless_known(
        self, item_id: str, partition: str, *slugs: str | None
    ) -> AbstractContextManager[None]:
        if self.doubts is None:
            return nullcontext()
        names = tuple(dict.fromkeys(slug for slug in slugs if slug is not None))
        return self.doubts.unless_known(Doubt(item_id=item_id, partition=partition, slugs=names))

    async def page(
        self, partition: str | None, limit: int, after: Position | None
    ) -> tuple[list[T], Position | None]:
        """Newest first; `partition` None: of all."""
        with catalog_errors(self._filing.kind):
            page = await self._store.list_records(self._filing.kind, partition, limit, after)
        items: list[T] = []
        for row in page.rows:
            try:
                items.append(self._filing.decode(row.data))
            except SnapshotError as error:  # it must not take the others with it
                logger.error("%s %s is left out: %s", self._filing.kind, row.id, error)  # noqa: TRY400
        return items, page.next_after

    def _cache(self, item: T, size: int) -> None:
        self._drop(item.id)
        if size > self._filing.cache_bytes or (self.doubts is not None and item.id in self.doubts):
            return
        self._items[item.id] = (item, size)
        self._bytes += size
        while self._bytes > self._filing.cache_bytes:
            self._drop(next(iter(self._items)))

    def _drop(self, item_id: str) -> None:
        dropped = self._items.pop(item_id, None)
        if dropped is not None:
            self._bytes -= dropped[1]

    def _forget(self, item_id: str) -> None:
        """Before and after a write: reads under way must not fill the cache with the old state.

        Slugs are few and change seldom: all known ones are looked up anew.
        """
        self._writes += 1
        self._drop(item_id)
        self._slugs.clear()
