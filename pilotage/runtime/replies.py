"""What a transition answers to the one who sent the command."""

from __future__ import annotations

import msgspec


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Accepted. `changed` False: it held already, or it was too late and changes nothing."""

    changed: bool = True


class Late(msgspec.Struct, frozen=True, kw_only=True):
    """A report about something that is over; `superseded`: a newer attempt exists."""

    superseded: bool


class ResetSteps(msgspec.Struct, frozen=True, kw_only=True):
    count: int


class SlotTaken(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the granted job slot is in use; otherwise it goes to the next in the queue."""

    taken: bool


Reply = Done | Late | ResetSteps | SlotTaken
