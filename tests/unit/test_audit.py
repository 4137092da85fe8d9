"""The audit: what is known fails, what cannot be asked is said, an exception has an end.

Real pip-audit against a service of our own on loopback, which speaks OSV.
"""

from __future__ import annotations

import datetime as dt
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.audit import __main__ as audit
from tests.audit.__main__ import (
    CLEAN,
    KNOWN,
    UNANSWERED,
    Accepted,
    Package,
    Report,
    Weakness,
    exceptions,
    judge,
    main,
)

TODAY = dt.date(2026, 6, 1)
PIN = "{} --hash=sha256:" + "0" * 64 + "\n"
WEAK = {
    "id": "GHSA-1",
    "aliases": ["CVE-2026-1"],
    "summary": "bad",
    "affected": [
        {
            "package": {"name": "weak", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.1"}]}],
        }
    ],
}


class Service:
    """Knows one weakness of `weak` below 2.1; says `status` to whoever asks."""

    def __init__(self) -> None:
        self.status = 200
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = query["package"]["name"]
                outer.asked.append(name)
                weak = name == "weak" and query["version"] == "2.0"
                body = json.dumps({"vulns": [WEAK]} if weak else {}).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_request(self, code: Any = "-", size: Any = "-") -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/query"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    with closing(Service()) as made:
        yield made


def run(url: str, folder: Path, *lines: str, accepted: str = "", go_on: bool = False) -> int:
    lock, table = folder / "lock", folder / "accepted.toml"
    lock.write_text("".join(PIN.format(line) for line in lines))
    table.write_text(accepted)
    more = ["--go-on"] if go_on else []
    return main(["--service", url, "--lock", str(lock), "--accepted", str(table), *more])


@pytest.mark.parametrize("go_on", [False, True])
def test_a_known_weakness_fails_and_the_version_that_mends_it_is_named(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], go_on: bool
) -> None:
    assert run(service.url, tmp_path, "sound==1.0", "weak==2.0", go_on=go_on) == KNOWN
    assert "audit: weak 2.0: CVE-2026-1, mended in 2.1\n" in capsys.readouterr().out
    assert {"sound", "weak"} <= set(service.asked)


def test_locked_packages_without_a_known_weakness_pass(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(service.url, tmp_path, "sound==1.0", "weak==2.1") == CLEAN
    assert "no weakness is known in 2 packages" in capsys.readouterr().out


def test_an_accepted_weakness_passes_and_is_named_with_its_reason(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    until = dt.datetime.now(tz=dt.UTC).date() + dt.timedelta(days=30)
    table = f'[[accepted]]\nid = "GHSA-1"\npackage = "weak"\nuntil = {until}\nreason = "r"\n'
    assert run(service.url, tmp_path, "weak==2.0", accepted=table) == CLEAN
    assert f"weak 2.0: CVE-2026-1, accepted until {until}: r" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["nobody listens", "error", "silent"])
def test_without_an_answer_a_test_run_goes_on_and_says_so_in_one_line(
    how: str,
    service: Service,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "REACHED_SECS", 0.5 if how == "silent" else 20.0)
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = {
            "nobody listens": "http://127.0.0.1:9/v1/query",
            "error": service.url,
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}/v1/query",
        }[how]
        service.status = 503
        assert run(url, tmp_path, "weak==2.0", go_on=True) == CLEAN
        said = capsys.readouterr().out
        assert said.count("\n") == 1
        assert f"audit: {url} could not be asked which packages have weaknesses" in said
        assert said.endswith("; this run goes on without it\n")
        assert run(url, tmp_path, "weak==2.0") == UNANSWERED
        assert "NOT known to be without weaknesses" in capsys.readouterr().out


def test_a_service_that_breaks_off_is_no_answer(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(_service: str) -> None:
        return None

    monkeypatch.setattr(audit, "unreachable", reached)
    service.status = 503
    assert run(service.url, tmp_path, "weak==2.0") == UNANSWERED
    monkeypatch.setattr(audit, "WHOLE_SECS", 0.01)
    assert run(service.url, tmp_path, "weak==2.0", go_on=True) == CLEAN


EXCEPTION = '[[accepted]]\nid = "CVE-1"\npackage = "a"\nuntil = 2026-07-01\nreason = "not used"\n'


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (EXCEPTION.replace("not used", " "), "it needs a reason"),
        (EXCEPTION.replace('reason = "not used"\n', ""), "required field `reason`"),
        (EXCEPTION.replace("until = 2026-07-01\n", ""), "required field `until`"),
        (EXCEPTION.replace("2026-07-01", "2026-06-01"), "until 2026-06-01 only"),
        (EXCEPTION.replace("2026-07-01", "2027-07-01"), "more than a year ahead"),
        (EXCEPTION.replace("2026-07-01", '"soon"'), "Invalid RFC3339"),
        (EXCEPTION + "why = 1\n", "unknown field `why`"),
        ("[[accepted", "each exception has id, package, until and reason"),
    ],
)
def test_an_exception_needs_a_reason_and_an_end(table: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "accepted.toml"
    file.write_text(table)
    holding, problems = exceptions(file, TODAY)
    assert holding == []
    assert len(problems) == 1
    assert problem in problems[0]


def test_an_exception_out_of_order_fails_before_anybody_is_asked(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = EXCEPTION.replace("2026-07-01", "2020-01-01")
    assert run(service.url, tmp_path, "sound==1.0", accepted=over, go_on=True) == KNOWN
    assert "a, CVE-1: accepted until 2020-01-01 only" in capsys.readouterr().out
    assert service.asked == []


def test_the_exceptions_of_this_repository_are_in_order() -> None:
    today = dt.datetime.now(tz=dt.UTC).date()
    assert exceptions(audit.FOLDER / "accepted.toml", today)[1] == []


def test_what_was_not_looked_up_is_not_called_clean() -> None:
    sound = Package(name="a", version="1")
    skipped = Package(name="c", skip_reason="c is not known there")
    open_ = Package(name="d", version="2", vulns=[Weakness(id="CVE-2")])
    accepted = Accepted(id="CVE-9", package="a", until=TODAY, reason="r")
    assert judge(Report([sound, skipped]), [])[0] == UNANSWERED
    assert judge(Report([]), [])[0] == UNANSWERED
    status, lines = judge(Report([open_, skipped]), [])
    assert (status, lines[0]) == (KNOWN, "d 2: CVE-2, mended in no version yet")
    assert "1 packages could not be looked up, 1 were" in lines[1]
    status, lines = judge(Report([sound]), [accepted])
    assert (status, lines[0]) == (CLEAN, "a, CVE-9: is accepted and not known any more; remove it")
