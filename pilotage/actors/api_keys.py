"""API keys: made, shown once, checked on every request, revoked.

A key is `plt_` and 43 URL-safe characters (256 random bits). Only its SHA-256 is stored. All keys
of the installation are held in memory, so that a request with a known key, and one with an unknown
key too, costs microseconds and never a question to the store. One process owns the store, so what
is in memory is what holds; a new owner reads the keys at its start.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Sequence

import msgspec

from pilotage.actors.catalog_doubts import Doubt, Doubts
from pilotage.actors.catalog_records import catalog_errors, new_id
from pilotage.actors.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
)
from pilotage.actors.idempotency import Idempotency
from pilotage.actors.kernel.clock import Clock
from pilotage.actors.principal import ADMIN, ANY, SCOPES, Principal
from pilotage.persistence import codec
from pilotage.persistence.port import Record, Store

logger = logging.getLogger(__name__)

KIND = "api_key"
PREFIX = "plt_"
MAX_KEYS = 10_000
"""Of the installation, expired ones included; all of them are held in memory."""
MAX_NAME = 128
MAX_DAYS = 3650
RESERVED_NAMES = frozenset({"admin", "system"})
_DAY_MS = 86_400_000
_PAGE = 500


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key without its secret. `hash` is the hexadecimal SHA-256 of the whole key."""

    id: str
    project_id: str
    name: str
    scopes: tuple[str, ...]
    hash: str
    created_at_ms: int
    created_by: str | None = None
    expires_at_ms: int | None = None


class _Entry(msgspec.Struct, frozen=True):
    key: ApiKey
    principal: Principal


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class ApiKeys:
    """The keys of one installation.

    `load` reads them all; the first `authenticate` does it by itself. May raise
    `UnavailableError` as long as they could not be read.
    """

    def __init__(
        self, store: Store, *, clock: Clock, fence: Callable[[], int], admin_key: str | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._fence = fence
        self._by_hash: dict[str, _Entry] = {}
        self._by_id: dict[str, ApiKey] = {}
        self._loaded = False
        self._lock = asyncio.Lock()
        self.doubts = Doubts(self._look_again)
        self._admin_hash: str | None = None
        if admin_key is not None:
            self.trust_admin_key(admin_key)

    def trust_admin_key(self, key: str) -> None:
        """Accept `key` as the admin key of the settings."""
        self._admin_hash = hash_of(key)

    async def load(self) -> None:
        """Read all keys of the store; once."""
        async with self._lock:
            if not self._loaded:
                await self._read_all()
                self._loaded = True

    async def authenticate(self, bearer: str) -> Principal | None:
        """The principal of a key; None if it is unknown, expired or revoked."""
        digest = hash_of(bearer)
        if self._admin_hash is not None and hmac.compare_digest(digest, self._admin_hash):
            return ADMIN
        if not self._loaded:
            await self.load()
        entry = self._by_hash.get(digest)
        if entry is None or not hmac.compare_digest(digest, entry.key.hash):
            return None
        expires = entry.key.expires_at_ms
        if expires is not None and expires <= self._clock.now_ms():
            return None
        return entry.principal

    async def create(
        self,
        *,
        name: str,
        project_id: str,
        scopes: Sequence[str],
        by: Principal,
        expires_in_days: float | None = None,
        idempotency: Idempotency | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key and, this once, its secret. Nobody gives away more than they hold.

        What is remembered with `idempotency` is that there is a key, not the key.
        """
        self._check_grant(by, project_id, scopes)
        await self.load()
        async with self._lock:
            await self._make_room()
            now = self._clock.now_ms()
            secret = PREFIX + secrets.token_urlsafe(32)
            key = ApiKey(
                id=new_id(now),
                project_id=project_id,
                name=name,
                scopes=tuple(s for s in SCOPES if s in scopes),
                hash=hash_of(secret),
                created_at_ms=now,
                created_by=by.name,
                expires_at_ms=_expiry(now, expires_in_days),
            )
            record = Record(
                kind=KIND,
                project_id=project_id,
                id=key.id,
                data=codec.encode_record(key),
                created_at_ms=now,
            )
            made = None if idempotency is None else idempotency.record(status=201, reference=key.id)
            doubt = Doubt(item_id=key.id, partition=project_id)
            with catalog_errors("api key"), self.doubts.unless_known(doubt):
                await self._store.put_record(record, self._fence(), made)
            self._hold(key)
        return key, secret

    async def revoke(self, key_id: str, by: Principal) -> None:
        """The key is refused from now on; `NotFoundError` if the caller cannot see it.

        As long as it is not known whether it is revoked it is refused, and can be revoked again.
        """
        await self.load()
        async with self._lock:
            key = self._visible(key_id, by)
            doubt = Doubt(item_id=key.id, partition=key.project_id)
            try:
                with catalog_errors("api key"), self.doubts.unless_known(doubt):
                    await self._store.delete_record(KIND, key_id, self._fence())
            except BaseException:
                if key_id in self.doubts:
                    self._by_hash.pop(key.hash, None)
                raise
            self._drop(key)

    async def _look_again(self, doubt: Doubt) -> object:
        """What is stored holds, once nothing can arrive any more that revokes it."""
        async with self._lock:
            with catalog_errors("api key"):
                record = await self._store.get_record(KIND, doubt.item_id)
                key = None if record is None else codec.decode_record(record.data, ApiKey)
            known = self._by_id.get(doubt.item_id)
            if key is None and known is not None:
                self._drop(known)
            elif key is not None and doubt.last:
                self._hold(key)
            elif key is not None:
                self._by_id[key.id] = key
        return key

    async def visible(self, key_id: str, by: Principal) -> ApiKey:
        """One key; `NotFoundError` if there is none that the caller can see."""
        await self.load()
        return self._visible(key_id, by)

    def _visible(self, key_id: str, by: Principal) -> ApiKey:
        key = self._by_id.get(key_id)
        if key is None or not by.sees(key.project_id):
            raise NotFoundError(f'unknown api key "{key_id}"')
        return key

    async def visible_to(
        self, by: Principal, project_id: str | None, limit: int, after: tuple[int, str] | None
    ) -> tuple[list[ApiKey], tuple[int, str] | None]:
        """A page of keys, newest first."""
        await self.load()
        found = sorted(
            (
                k
                for k in self._by_id.values()
                if by.sees(k.project_id)
                and (project_id is None or k.project_id == project_id)
                and (after is None or (k.created_at_ms, k.id) < after)
            ),
            key=lambda k: (k.created_at_ms, k.id),
            reverse=True,
        )
        page = found[:limit]
        return page, (page[-1].created_at_ms, page[-1].id) if len(found) > limit else None

    @staticmethod
    def _check_grant(by: Principal, project_id: str, scopes: Sequence[str]) -> None:
        if project_id != by.project_id and not by.is_admin:
            raise ForbiddenError(
                f'this key belongs to project "{by.project_id}" and can make keys only for it'
            )
        beyond = [s for s in scopes if not by.may(s) or (s == ANY and ANY not in by.scopes)]
        if beyond:
            raise ForbiddenError(
                "a key cannot give scopes that it does not have: " + ", ".join(sorted(beyond))
            )

    async def _make_room(self) -> None:
        if len(self._by_id) < MAX_KEYS:
            return
        now = self._clock.now_ms()
        for key in list(self._by_id.values()):
            if key.expires_at_ms is not None and key.expires_at_ms <= now:
                with catalog_errors("api key"):
                    await self._store.delete_record(KIND, key.id, self._fence())
                self._drop(key)
        if len(self._by_id) >= MAX_KEYS:
            raise ConflictError(f"there are {MAX_KEYS} api keys already; revoke some first")

    async def _read_all(self) -> None:
        after: tuple[int, str] | None = None
        while True:
            with catalog_errors("api key"):
                page = await self._store.list_records(KIND, None, _PAGE, after)
            for row in page.rows:
                try:
                    self._hold(codec.decode_record(row.data, ApiKey))
                except codec.SnapshotError as error:  # it must not lock out the others
                    logger.error("api key %s is refused: %s", row.id, error)  # noqa: TRY400
            after = page.next_after
            if after is None:
                return

    def _hold(self, key: ApiKey) -> None:
        principal = Principal(
            name=key.name,
            project_id=key.project_id,
            scopes=frozenset(key.scopes),
            key_id=key.id,
        )
        self._by_id[key.id] = key
        self._by_hash[key.hash] = _Entry(key, principal)

    def _drop(self, key: ApiKey) -> None:
        self._by_id.pop(key.id, None)
        self._by_hash.pop(key.hash, None)


def _expiry(now: int, days: float | None) -> int | None:
    return None if days is None else now + int(days * _DAY_MS)


def scope_problem(scope: str) -> str | None:
    """Why it is no scope."""
    if scope in SCOPES:
        return None
    return f'unknown scope "{scope[:64]}"; known are ' + ", ".join(SCOPES)


def check_key(name: str, scopes: Sequence[str], expires_in_days: float | None) -> None:
    """Refuse what no key can be: `InvalidError` with every problem."""
    problems: list[str] = []
    if not name.strip() or len(name) > MAX_NAME or "\0" in name:
        problems.append(f"name: must have 1 to {MAX_NAME} characters")
    elif name in RESERVED_NAMES:
        problems.append(f'name: "{name}" is reserved; choose another')
    if not scopes:
        problems.append("scopes: must name at least one of " + ", ".join(SCOPES))
    found = [(i, scope_problem(scope)) for i, scope in enumerate(scopes)]
    problems += [f"scopes[{i}]: {problem}" for i, problem in found if problem is not None]
    if expires_in_days is not None and not 0 < expires_in_days <= MAX_DAYS:
        problems.append(f"expires_in_days: must be more than 0 and at most {MAX_DAYS}")
    if problems:
        raise InvalidError("the api key is not valid", problems)
