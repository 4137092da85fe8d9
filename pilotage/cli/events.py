"""`pilotage send-event`: what steps of the type `wait_for_event` wait for."""

from __future__ import annotations

from urllib.parse import quote

import click

from pilotage.cli.answers import EventSent, Json
from pilotage.cli.errors import USAGE, CommandError
from pilotage.cli.session import Session, operator, parse_json


@click.command("send-event")
@click.argument("event_key", metavar="KEY")
@click.option("--payload", metavar="JSON|@FILE", help="Becomes the output of the steps.")
@click.option(
    "--keep",
    type=click.IntRange(0, 86_400),
    metavar="SECS",
    help="With none waiting: keep it so long for the first step that will.",
)
@operator
def send_event(session: Session, event_key: str, *, payload: str | None, keep: int | None) -> None:
    """Send an event to every step that waits for it."""
    if not event_key:
        raise CommandError("KEY must not be empty", USAGE)
    body: dict[str, Json] = {}
    if payload is not None:
        body["payload"] = parse_json(payload, "--payload")
    if keep is not None:
        body["buffer_secs"] = keep
    # A key may contain slashes; the server takes them as they are.
    path = f"/v1/events/{quote(event_key, safe='/')}/send"
    sent = session.client.post(path, EventSent, body).data
    delivered = int(sent["delivered"])
    words = f"{delivered} step(s) took it" if delivered else "no step waits for it"
    if sent.get("buffered"):
        words += f"; kept until {sent.get('expires_at')}"
    session.out.done(words, sent)
