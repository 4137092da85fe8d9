from __future__ import annotations

import pytest

from pilotage.actors import api_keys
from pilotage.actors.api_keys import ApiKeys, check_key, hash_of
from pilotage.actors.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from pilotage.actors.principal import ADMIN, Principal
from tests.unit.catalog.conftest import Kit

DAY_MS = 86_400_000
MANAGER = Principal(name="m", project_id="p", scopes=frozenset({"api-keys:manage", "jobs:read"}))


def keys_of(kit: Kit) -> ApiKeys:
    return kit.catalog.keys


async def make(kit: Kit, name: str = "ci", project: str = "p", **more: float) -> str:
    _, secret = await keys_of(kit).create(
        name=name, project_id=project, scopes=["jobs:read"], by=ADMIN,
        expires_in_days=more.get("days"),
    )  # fmt: skip
    return secret


async def test_a_key_stands_for_its_principal(kit: Kit) -> None:
    secret = await make(kit)
    principal = await keys_of(kit).authenticate(secret)
    assert principal is not None
    assert (principal.name, principal.project_id) == ("ci", "p")
    assert principal.may("jobs:read")
    assert not principal.may("jobs:write")
    assert principal.sees("p")
    assert not principal.sees("q")
    assert await keys_of(kit).authenticate(secret + "x") is None
    assert await keys_of(kit).authenticate("") is None
    assert await keys_of(kit).authenticate("\udcff") is None


async def test_only_the_hash_is_stored(kit: Kit) -> None:
    secret = await make(kit)
    stored = repr(kit.store.server.__dict__)
    assert secret not in stored
    assert secret.removeprefix("plt_") not in stored
    assert hash_of(secret) in stored


async def test_keys_are_read_by_a_new_process_and_then_answered_from_memory(kit: Kit) -> None:
    secrets = [await make(kit, f"n{n}") for n in range(3)]
    reborn = Kit(kit.store.server)
    await reborn.store.open()
    for secret in secrets:
        assert await keys_of(reborn).authenticate(secret) is not None
    reborn.store.away = True
    assert await keys_of(reborn).authenticate(secrets[0]) is not None
    assert await keys_of(reborn).authenticate("unknown") is None


async def test_a_key_expires(kit: Kit) -> None:
    secret = await make(kit, days=2)
    kit.clock.ms += 2 * DAY_MS - 1
    assert await keys_of(kit).authenticate(secret) is not None
    kit.clock.ms += 1
    assert await keys_of(kit).authenticate(secret) is None


async def test_a_revoked_key_is_refused_at_once_and_for_good(kit: Kit) -> None:
    secret = await make(kit)
    (key,), _ = await keys_of(kit).visible_to(ADMIN, None, 10, None)
    stranger = Principal(name="s", project_id="q", scopes=frozenset({"*"}))
    with pytest.raises(NotFoundError):
        await keys_of(kit).revoke(key.id, stranger)
    await keys_of(kit).revoke(key.id, MANAGER)
    assert await keys_of(kit).authenticate(secret) is None
    with pytest.raises(NotFoundError):
        await keys_of(kit).revoke(key.id, MANAGER)
    reborn = Kit(kit.store.server)
    await reborn.store.open()
    assert await keys_of(reborn).authenticate(secret) is None


async def test_a_key_that_could_not_be_stored_does_not_work(kit: Kit) -> None:
    await keys_of(kit).load()
    kit.store.away = True
    with pytest.raises(UnavailableError):
        await make(kit)
    assert await keys_of(kit).visible_to(ADMIN, None, 10, None) == ([], None)


async def test_the_admin_key_of_the_settings_is_admin(kit: Kit) -> None:
    keys_of(kit).trust_admin_key("from-the-settings")
    assert await keys_of(kit).authenticate("from-the-settings") is ADMIN
    assert ADMIN.is_admin
    assert ADMIN.may("anything")


@pytest.mark.parametrize(
    ("project", "scopes"),
    [("p", ["*"]), ("p", ["jobs:write"]), ("q", ["jobs:read"]), ("*", ["jobs:read"])],
)
async def test_nobody_gives_more_than_they_hold(kit: Kit, project: str, scopes: list[str]) -> None:
    with pytest.raises(ForbiddenError):
        await keys_of(kit).create(name="x", project_id=project, scopes=scopes, by=MANAGER)


async def test_expired_keys_make_room(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS", 2)
    await make(kit, "a", days=1)
    await make(kit, "b")
    with pytest.raises(ConflictError, match="revoke"):
        await make(kit, "c")
    kit.clock.ms += 2 * DAY_MS
    await make(kit, "c")
    found, _ = await keys_of(kit).visible_to(ADMIN, None, 10, None)
    assert [k.name for k in found] == ["c", "b"]


async def test_lists_are_paged_and_bounded_to_what_the_caller_sees(kit: Kit) -> None:
    for n in range(4):
        kit.clock.ms += 1
        await make(kit, f"k{n}")
    await make(kit, "foreign", project="q")
    first, after = await keys_of(kit).visible_to(MANAGER, None, 3, None)
    second, end = await keys_of(kit).visible_to(MANAGER, None, 3, after)
    assert [k.name for k in first + second] == ["k3", "k2", "k1", "k0"]
    assert end is None


def test_every_problem_of_a_key_is_told() -> None:
    with pytest.raises(InvalidError) as refused:
        check_key(" ", ["jobs:read", "nonsense"], 0)
    assert len(refused.value.details) == 3
    with pytest.raises(InvalidError, match="valid"):
        check_key("admin", [], None)
