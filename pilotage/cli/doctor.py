"""`pilotage doctor`: what may be wrong, on this machine and with the server, and what to do.

Each check is one line: what was looked at, how it is, what to do about it. Nothing is changed.
The exit status is 0 if no check failed (warnings do not count), 5 if all that failed is that no
Pilotage answers at the address that was named, else 1. Where no address was named, a server that
does not run is a warning: this machine may be looked at before the first start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

import pilotage
from pilotage.cli.answers import Health, Quarantined, Readiness, Workflow, page_of
from pilotage.cli.client import Client
from pilotage.cli.errors import FAILED, CommandError, RefusedError
from pilotage.cli.output import Column, key
from pilotage.cli.session import Session, operator
from pilotage.runtime.errors import PilotageError
from pilotage.settings import Settings, SettingsError

if TYPE_CHECKING:
    from pilotage.persistence.store_report import StoreReport

LOW_DISK_BYTES = 1 << 30
MAX_SKEW_SECS = 5.0
SHOWN_RUNS = 20
OK, WARNING, BAD = "ok", "warning", "failed"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line: `check` is what was looked at, `result` one of ok, warning, failed.

    `exit_status`: the command's, if nothing else has failed.
    """

    check: str
    result: str
    found: str
    exit_status: int = FAILED

    def row(self) -> dict[str, str]:
        return {"check": self.check, "result": self.result, "found": self.found}


COLUMNS = [
    Column("CHECK", key("check")),
    Column("RESULT", key("result")),
    Column("FOUND", key("found"), fold=True),
]


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, result=OK, found=found)


def warning(check: str, found: str) -> Finding:
    return Finding(check=check, result=WARNING, found=found)


def bad(check: str, found: str) -> Finding:
    return Finding(check=check, result=BAD, found=found)


# --- this machine ------------------------------------------------------------------------------


def check_python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield ok("version", f"pilotage {pilotage.__version__}, Python {version}")


def check_settings() -> Iterator[Finding]:
    try:
        loaded_settings()
    except SettingsError as error:
        for problem in error.problems:
            yield bad("settings", problem)
    else:
        yield ok("settings", "valid (`pilotage serve --print-config` shows them)")


def loaded_settings() -> Settings:
    from pilotage.cli.serve import load

    return load({}).settings


def check_disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir.absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        yield bad(
            "data directory", f"{folder}: {existing} cannot be written; set PILOTAGE_DATA_DIR"
        )
        return
    free = shutil.disk_usage(existing).free
    said = f"{folder}, {free / (1 << 30):.1f} GiB free"
    if free < LOW_DISK_BYTES:
        yield warning("data directory", f"{said}: the store stops taking writes when it is full")
    else:
        yield ok("data directory", said)
    yield from _check_owner(folder)


def _check_owner(folder: Path) -> Iterator[Finding]:
    owner = _owner(folder)
    if owner is not None:
        yield ok("owner", f"process {owner} owns the data directory")


def _owner(folder: Path) -> int | None:
    """The process that serves from this data directory."""
    try:
        holder = (folder / "owner.lock").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(holder) if holder.isdigit() and _is_alive(int(holder)) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_embedded(settings: Settings) -> Iterator[Finding]:
    from pilotage.persistence.server_process import EmbeddedServerError, find_server_binary

    try:
        binary = find_server_binary(settings.server_binary)
        shown = subprocess.run(  # noqa: S603 - the program that serve would start
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except EmbeddedServerError as error:
        yield bad("embedded store", str(error))
    except (OSError, subprocess.SubprocessError) as error:
        yield bad("embedded store", f"its program does not run: {error}")
    else:
        yield ok("embedded store", shown.strip().partition(" sha=")[0] or str(binary))


def check_store(settings: Settings, url: str | None = None) -> Iterator[Finding]:
    """The Redis or Valkey of the settings, or at `url`: whether runs can be kept in it."""
    import asyncio

    from pilotage.persistence.store_report import look_at
    from pilotage.settings import mask_url

    url = url or settings.redis_url or ""
    shown = mask_url(url)
    try:
        report = asyncio.run(look_at(url, settings.namespace))
    except PilotageError as error:
        yield bad("store", f"{shown}: {error}")
        return
    said = f"{shown}, {report.version}"
    if report.problems:
        yield from (bad("store", f"{said}: {problem}") for problem in report.problems)
    else:
        yield ok("store", f"{said} takes writes, {report.memory}")
    yield from (warning("store", f"{said}: {risk}") for risk in report.risks)
    if abs(report.skew_secs) > MAX_SKEW_SECS:
        way = "ahead of" if report.skew_secs > 0 else "behind"
        skew = abs(report.skew_secs)
        yield warning("store clock", f"{skew:.0f} s {way} this machine's; set both by NTP")
    else:
        yield ok("store clock", "agrees with this machine's")
    if not report.problems:
        yield _format(report)
    yield _fence(report)


def _format(report: StoreReport) -> Finding:
    from pilotage.persistence.codec import SCHEMA_VERSION

    known = report.format
    if known is None:
        return ok("store format", f"none noted yet; the next server notes {SCHEMA_VERSION}")
    said = f"{known.version}, of pilotage {known.release} and newer"
    if known.version == SCHEMA_VERSION:
        return ok("store format", said)
    raised = (
        f"the next server of this release raises it to {SCHEMA_VERSION}: older ones cannot open"
    )
    return ok("store format", f"{said}; {raised} the store any more")


def _fence(report: StoreReport) -> Finding:
    if not report.fence:
        return ok("fence", "0: no server has used this store and namespace yet")
    if report.holder is None:
        return ok("fence", f"{report.fence}, held by nobody: the next server takes it at once")
    left = f"{report.lease_left_secs:.0f} s of its lease left"
    return ok("fence", f"{report.fence}, held by {report.holder}, {left}")


def check_running_embedded(settings: Settings) -> Iterator[Finding]:
    """The embedded store of a server that runs."""
    from pilotage.persistence.embedded import EmbeddedServer

    if _owner(settings.data_dir) is not None:
        yield from check_store(settings, EmbeddedServer(settings.data_dir).url)


# --- the server --------------------------------------------------------------------------------


def check_server(session: Session) -> Iterator[Finding]:
    with closing(Client(session.settings, sleep=lambda _: None)) as client:
        yield from _check_server(session, client)


def _check_server(session: Session, client: Client) -> Iterator[Finding]:
    url = session.settings.url
    try:
        before = time.time()
        health = client.get("/health", Health)
        after = time.time()
    except CommandError as error:
        result = BAD if session.settings.named else WARNING
        yield Finding(
            check="server", result=result, found=error.message, exit_status=error.exit_status
        )
        return
    version = str(health.data["version"])
    if version == pilotage.__version__:
        yield ok("server", f"{url} runs {version}")
    else:
        yield warning("server", f"{url} runs {version}, this command is {pilotage.__version__}")
    yield from _check_clock(health.headers.get("date"), before, after)
    yield from _check_ready(client)
    yield from _check_key(session, client)


def _check_clock(date: str | None, before: float, after: float) -> Iterator[Finding]:
    if date is None:
        return
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return  # no date of ours; the rest tells whose server it is
    # The header has whole seconds: anything within them and the request's time is agreement.
    skew = max(theirs - after, before - (theirs + 1), 0.0)
    if skew > MAX_SKEW_SECS:
        yield warning("clock", f"{skew:.0f} s apart from the server's; set it by NTP")
    else:
        yield ok("clock", "agrees with the server's")


def _check_ready(client: Client) -> Iterator[Finding]:
    """The server's own words about its store, its fence and its recovery."""
    try:
        answer = client.request("GET", "/health/ready", Readiness, repeatable=False)
    except RefusedError as error:
        yield bad("ready", error.message)
    except CommandError as error:
        yield bad("ready", str(error))
    else:
        if answer.data["status"] == "degraded":
            yield warning("ready", f"degraded: {answer.data.get('reason')}")
        else:
            yield ok("ready", "the store takes writes, the fence is held, runs are recovered")


def _check_key(session: Session, client: Client) -> Iterator[Finding]:
    if not session.settings.api_key:
        yield warning("key", "none: set PILOTAGE_API_KEY")
        return
    try:
        list(client.pages("/v1/workflows", Workflow, {"project_id": session.project}, 1))
    except RefusedError as error:
        if error.status == 422:  # an admin key without a project: the key itself is good
            yield ok("key", "accepted; it is an admin key: name a project with --project")
            yield from _check_quarantine(client)
        else:
            yield bad("key", f"refused: {error.message}")
    except CommandError as error:
        yield bad("key", str(error))
    else:
        yield ok("key", "accepted")
        yield from _check_quarantine(client)


def _check_quarantine(client: Client) -> Iterator[Finding]:
    """The runs that are set apart, as far as the key may see them."""
    try:
        page = client.get("/v1/quarantine", page_of(Quarantined), {"limit": SHOWN_RUNS}).data
    except CommandError as error:
        yield warning("quarantine", str(error))
        return
    if not page["data"]:
        yield ok("quarantine", "no run is set apart")
        return
    for row in page["data"]:
        yield warning(
            "quarantine",
            f"run {row['workflow_run_id']}: {row['reason']} (POST /v1/quarantine/"
            "{id}/release loads it again, …/discard ends it)",
        )
    if page["has_more"]:
        yield warning("quarantine", f"and more: GET /v1/quarantine has all beyond {SHOWN_RUNS}")


def findings(session: Session) -> Iterator[Finding]:
    yield from check_python()
    yield from check_settings()
    local: list[Callable[[Settings], Iterator[Finding]]] = []
    try:
        settings = loaded_settings()
    except SettingsError:
        pass
    else:
        local = (
            [check_disk, check_embedded, check_running_embedded]
            if settings.redis_url is None
            else [check_store]
        )
        for check in local:
            yield from check(settings)
    yield from check_server(session)


def check_deep() -> Iterator[Finding]:
    """Everything in the store, one by one."""
    from pilotage.cli.doctor_deep import look

    try:
        report = look(loaded_settings())
    except (PilotageError, OSError) as error:
        yield bad("contents", f"the store cannot be looked through: {error}")
        return
    said = f"{report.runs} runs and {report.records} records looked at"
    for problem in report.problems:
        yield bad("contents", problem)
    if report.found:
        yield bad("contents", f"{said}, {report.found} problems")
    else:
        yield ok("contents", f"{said}, everything readable and in its place")


@click.command()
@click.option("--deep", is_flag=True, help="Look through everything in the store, too.")
@operator
def doctor(session: Session, *, deep: bool) -> None:
    """Check this machine and the server."""
    found = list(findings(session))
    if deep:
        found += check_deep()
    session.out.rows([finding.row() for finding in found], COLUMNS)
    failed = [finding for finding in found if finding.result == BAD]
    if len(failed) == 1:
        raise CommandError(f"{failed[0].check}: {failed[0].found}", failed[0].exit_status)
    if failed:
        checks = ", ".join(dict.fromkeys(finding.check for finding in failed))
        raise CommandError(f"{len(failed)} checks failed: {checks}")
