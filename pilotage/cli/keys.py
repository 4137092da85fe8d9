"""`pilotage keys`: API keys of a server."""

from __future__ import annotations

import click

from pilotage.actors.principal import SCOPES
from pilotage.cli import answers
from pilotage.cli.client import segment
from pilotage.cli.errors import USAGE, CommandError
from pilotage.cli.output import Column, key
from pilotage.cli.session import Session, operator
from pilotage.cli.text import ago

KEYS = "/v1/api-keys"

COLUMNS = [
    Column("ID", key("id")),
    Column("NAME", key("name")),
    Column("PROJECT", key("project_id")),
    Column("SCOPES", lambda item: " ".join(item.get("scopes") or []), fold=True),
    Column("CREATED", lambda item: ago(item.get("created_at"))),
    Column("EXPIRES", lambda item: ago(item.get("expires_at")) or "never"),
]


@click.group(no_args_is_help=True)
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(SCOPES),
    help="What it may do; repeatable.",
)
@click.option("--admin", is_flag=True, help="For every project.")
@click.option(
    "--expires-in-days",
    type=click.FloatRange(min=0, min_open=True),
    help="Refused after that; else never.",
)
@operator
def create(
    session: Session,
    name: str,
    *,
    scopes: tuple[str, ...],
    admin: bool,
    expires_in_days: float | None,
) -> None:
    """Make a key and print it, this once. NAME is who its holder is, e.g. to approvals."""
    if not admin and session.project is None:
        raise CommandError(
            "which project is the key for? --project NAME, or --admin for all", USAGE
        )
    body: dict[str, object] = {
        "name": name,
        "project_id": "*" if admin else session.project,
        "scopes": list(scopes),
    }
    if expires_in_days is not None:
        body["expires_in_days"] = expires_in_days
    # Tried once: a repeat would make a second key.
    made = session.client.request("POST", KEYS, answers.NewKey, body=body, repeatable=False).data
    if session.out.as_json:
        session.out.json_line(made)
        return
    session.out.say(f"{made['key']}")
    session.out.say(f"(key {made['id']} of {name}; it is shown only now)", "dim")


@keys.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="At most so many.",
)
@operator
def list_keys(session: Session, *, limit: int) -> None:
    """List keys, newest first, without their secrets."""
    found = session.client.pages(KEYS, answers.Key, {"project_id": session.project}, limit)
    session.out.rows(found, COLUMNS, empty="no keys")


@keys.command()
@click.argument("key_id", metavar="ID")
@operator
def revoke(session: Session, key_id: str) -> None:
    """Refuse a key from now on."""
    session.client.request("DELETE", f"{KEYS}/{segment(key_id)}", answers.Nothing)
    session.out.done(f"{key_id} is revoked", {"id": key_id, "revoked": True})
