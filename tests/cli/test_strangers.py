"""No command takes for done what no Pilotage server has said, and none waits for ever: each verb
once against each kind of server that is away, broken or somebody else's."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from pilotage.cli import client
from pilotage.cli.errors import AWAY, DONE
from pilotage.cli.root import invoke, root
from tests.cli.reference import leaves
from tests.cli.stranger import SCRIPTS, Stranger

RUN = "01900000-0000-7000-8000-000000000000"
FILE = "greet.yaml"
VERBS: dict[str, tuple[str, ...]] = {
    "apply": (FILE,),
    "trigger": ("greet",),
    "trigger --watch": ("greet",),
    "runs list": (),
    "runs list --workflow greet": (),
    "runs show": (RUN,),
    "runs watch": (RUN,),
    "runs pause": (RUN,),
    "runs resume": (RUN,),
    "runs cancel": (RUN,),
    "runs cancel --dry-run": (RUN,),
    "runs retry": (RUN,),
    "runs retry --watch": (RUN,),
    "runs retry --dry-run": (RUN,),
    "runs retry-step": (RUN, "a"),
    "runs retry-step --dry-run": (RUN, "a"),
    "runs replay": (RUN,),
    "runs replay --dry-run": (RUN, "a"),
    "runs replay  ": (RUN, "a"),
    "runs approve": (RUN, "a"),
    "runs reject": (RUN, "a"),
    "runs skip": (RUN, "a", "--reason", "so"),
    "runs skip --dry-run": (RUN, "a", "--reason", "so"),
    "runs complete": (RUN, "a"),
    "runs complete --dry-run": (RUN, "a"),
    "runs explain": (RUN,),
    "runs events": (RUN,),
    "runs pin": (RUN,),
    "runs unpin": (RUN,),
    "send-event": ("key",),
    "workflows list": (),
    "workflows show": ("greet",),
    "workflows delete": ("greet",),
    "jobs list": (),
    "keys create": ("k", "--scope", "jobs:read"),
    "keys list": (),
    "keys revoke": ("id",),
    "doctor": (),
}
ANSWERED_BY_204 = frozenset({"workflows delete", "keys revoke"})
"""It is what Pilotage itself would say."""
SLOW = frozenset({"silent", "dribbles its body", "dribbles its head"})
REFUSED = "refused"


@pytest.fixture(scope="module")
def urls() -> Iterator[Mapping[str, str]]:
    with ExitStack() as stack:
        strangers = {
            name: stack.enter_context(Stranger(script)) for name, script in SCRIPTS.items()
        }
        taken = stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))  # never listens
        refused = f"http://127.0.0.1:{taken.getsockname()[1]}"
        yield {REFUSED: refused, **{name: peer.url for name, peer in strangers.items()}}


class Said(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PILOTAGE_API_KEY", "plt_x")
    monkeypatch.setenv("PILOTAGE_PROJECT", "shop")
    (tmp_path / FILE).write_text("name: X\nsteps: [{step_ref: a, job_id: b}]\n")


def say(capsys: pytest.CaptureFixture[str], url: str, verb: str, *more: str) -> Said:
    status = invoke([*verb.split(), *VERBS[verb], "--url", url, *more])
    captured = capsys.readouterr()
    return Said(status, captured.out, captured.err)


def test_every_verb_that_speaks_to_a_server_is_tried() -> None:
    commands = {
        path.removeprefix("pilotage ")
        for path, command in leaves(root, "pilotage")
        if any(parameter.name == "url" for parameter in command.params)
    }
    assert {verb.partition(" -")[0].strip() for verb in VERBS} == commands


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("stranger", [REFUSED, *SCRIPTS])
def test_a_stranger_is_told_in_one_line_and_never_a_success(
    urls: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stranger: str,
    verb: str,
) -> None:
    if stranger in SLOW:  # a larger bound would only make the test longer
        monkeypatch.setattr(client, "REQUEST_SECS", 0.05)
    said = say(capsys, urls[stranger], verb)
    if stranger == "204" and verb in ANSWERED_BY_204:
        assert said.status == DONE
        return
    assert said.status == AWAY, said
    assert said.err.count("\n") == 1, said
    assert "bug" not in said.err
    assert urls[stranger] in said.err
    assert ("no answer from" in said.err) != ("does not answer like a Pilotage" in said.err), said
    assert verb == "doctor" or not said.out, "nothing was done, so nothing is told"


@pytest.mark.parametrize(
    ("stranger", "words"),
    [
        (REFUSED, "(connection refused); start a server"),
        ("closes at once", "no answer from"),
        ("breaks off", "(the answer broke off)"),
        ("garbage", "(not HTTP as it should be: "),
        ("502 HTML", "(502 Bad Gateway from something in between)"),
        ("404 HTML", "(404 Not Found with text/html); check the address"),
        ("200 HTML", "(200 OK with text/html; charset=utf-8 instead of JSON)"),
        ("200 HTML that says JSON", "(200 OK with a body that is not JSON)"),
        ("200 too deep", "(200 OK with JSON that is too deep)"),
        ("200 []", "(200 OK with other JSON: Expected `object`, got `array`)"),
        ("200 {}", "(200 OK with other JSON: Object missing required field `id`)"),
        ("204", "(204 No Content with no content type instead of JSON)"),
        ("redirect", "(302 Found to http://login.hotel/)"),
    ],
)
def test_the_line_tells_what_was_there_instead(
    urls: Mapping[str, str], capsys: pytest.CaptureFixture[str], stranger: str, words: str
) -> None:
    assert words in say(capsys, urls[stranger], "runs show").err


@pytest.mark.parametrize("stranger", ["dribbles its body", "dribbles its head"])
def test_what_dribbles_is_given_up_as_a_whole(
    urls: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stranger: str,
) -> None:
    """No single read takes long."""
    monkeypatch.setattr(client, "REQUEST_SECS", 0.3)
    said = say(capsys, urls[stranger], "runs show")
    assert "(no whole answer within 0 s)" in said.err


def test_a_silent_server_is_given_up_at_the_first_read(
    urls: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "READ_SECS", 0.1)
    assert "(timed out)" in say(capsys, urls["silent"], "runs show").err


@pytest.mark.parametrize("verb", ["runs list", "runs show", "runs explain", "keys create"])
def test_people_are_told_the_same(
    urls: Mapping[str, str], capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    said = say(capsys, urls["200 {}"], verb, "--table")
    assert (said.status, said.out) == (AWAY, "")
    assert "does not answer like a Pilotage server" in said.err
