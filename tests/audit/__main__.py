"""Ask which locked packages have known weaknesses, and say in plain words what came of it.

    python -m tests.audit             by hand: fails unless every package was looked up
    python -m tests.audit --go-on     in CI: the same, but goes on when the service cannot be asked

A known weakness fails in both, named with the version that mends it. The exit status: 0 none is
known, 1 there are some (or an exception in `accepted.toml` is not in order), 2 something could not
be looked up. Whether the service can be reached is known after ten seconds at most.
"""

from __future__ import annotations

import argparse
import datetime as dt
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

FOLDER = Path(__file__).parent
LOCK = FOLDER.parents[1] / "requirements.lock"
SERVICE = "https://api.osv.dev/v1/query"
CLEAN, KNOWN, UNANSWERED = 0, 1, 2
SHOWN = 2
REACHED_SECS = 8.0
ANSWER_SECS = 5
WHOLE_SECS = 180.0
LONGEST_DAYS = 366
PROBE = {"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "26.0"}


class Accepted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An exception: what is known, and why it is accepted until when."""

    id: str
    package: str
    until: dt.date
    reason: str


class Exceptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    accepted: list[Accepted] = []


class Weakness(msgspec.Struct):
    id: str
    fix_versions: list[str] = []
    aliases: list[str] = []


class Package(msgspec.Struct):
    name: str
    version: str = ""
    vulns: list[Weakness] = []
    skip_reason: str | None = None


class Report(msgspec.Struct):
    dependencies: list[Package]


def exceptions(file: Path, today: dt.date) -> tuple[list[Accepted], list[str]]:
    """Those that hold, and what is wrong with the others."""
    try:
        found = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Exceptions)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
        return [], [f"{file.name}: {error}; each exception has id, package, until and reason"]
    holding: list[Accepted] = []
    problems: list[str] = []
    for one in found.accepted:
        what = f"{file.name}: {one.package}, {one.id}"
        if not one.reason.strip():
            problems.append(f"{what}: it needs a reason")
        elif one.until <= today:
            problems.append(f"{what}: accepted until {one.until} only; mend it or decide again")
        elif (one.until - today).days > LONGEST_DAYS:
            problems.append(f"{what}: {one.until} is more than a year ahead")
        else:
            holding.append(one)
    return holding, problems


def judge(report: Report, accepted: Sequence[Accepted]) -> tuple[int, list[str]]:
    """The exit status and the lines to say."""
    lines: list[str] = []
    status = CLEAN
    used: set[str] = set()
    for package in report.dependencies:
        for weakness in package.vulns:
            known_as = {weakness.id, *weakness.aliases}
            one = next(
                (a for a in accepted if a.package == package.name and a.id in known_as), None
            )
            said = f"{package.name} {package.version}: {weakness.id}"
            if one is not None:
                used.add(one.id)
                lines.append(f"{said}, accepted until {one.until}: {one.reason}")
                continue
            status = KNOWN
            lines.append(
                f"{said}, mended in {', '.join(weakness.fix_versions) or 'no version yet'}"
            )
    skipped = [package for package in report.dependencies if package.skip_reason is not None]
    asked = len(report.dependencies) - len(skipped)
    if skipped:
        some = "; ".join(str(package.skip_reason) for package in skipped[:SHOWN])
        lines.append(f"{len(skipped)} packages could not be looked up, {asked} were: {some}")
    else:
        lines += [f"{a.package}, {a.id}: is accepted and not known any more; remove it"
                  for a in accepted if a.id not in used]  # fmt: skip
    if not report.dependencies:
        return UNANSWERED, ["nothing was looked up"]
    if skipped and status == CLEAN:
        status = UNANSWERED
    if status == CLEAN:
        lines.append(f"no other weakness is known in {asked} packages" if used else
                     f"no weakness is known in {asked} packages")  # fmt: skip
    return status, lines


def unreachable(service: str) -> str | None:
    """Why the service cannot be asked. Looking up its name may take longer than any timeout: it is
    asked beside, and given up.
    """
    told: list[str | None] = []

    def ask() -> None:
        try:
            httpx.post(service, json=PROBE, timeout=ANSWER_SECS).raise_for_status()
        except httpx.HTTPError as error:
            told.append(f"{type(error).__name__}: {error}".partition("\n")[0])
        else:
            told.append(None)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(REACHED_SECS)
    return told[0] if told else f"no answer within {REACHED_SECS:g} s"


def look_up(service: str, lock: Path) -> tuple[Report | None, str]:
    """What pip-audit found, or why it found nothing."""
    with tempfile.TemporaryDirectory() as cache:
        command = [
            sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes",
            "--requirement", str(lock), "--vulnerability-service", "osv", "--osv-url", service,
            "--aliases", "on", "--format", "json", "--progress-spinner", "off",
            "--timeout", str(ANSWER_SECS), "--cache-dir", cache,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=WHOLE_SECS
            )
        except subprocess.TimeoutExpired:
            return None, f"it had not looked up everything after {WHOLE_SECS:g} s"
    try:
        return msgspec.json.decode(done.stdout, type=Report), ""
    except msgspec.MsgspecError:
        return None, (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]


def audit(service: str, lock: Path, accepted: Path, today: dt.date) -> tuple[int, list[str]]:
    holding, problems = exceptions(accepted, today)
    if problems:
        return KNOWN, problems
    why = unreachable(service)
    if why is None:
        report, why = look_up(service, lock)
        if report is not None:
            return judge(report, holding)
    return UNANSWERED, [f"{service} could not be asked which packages have weaknesses: {why[:300]}"]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit")
    parser.add_argument("--go-on", action="store_true", help="when the service cannot be asked")
    parser.add_argument("--service", default=SERVICE, help="an OSV service")
    parser.add_argument("--lock", type=Path, default=LOCK)
    parser.add_argument("--accepted", type=Path, default=FOLDER / "accepted.toml")
    asked: Any = parser.parse_args(arguments)
    today = dt.datetime.now(tz=dt.UTC).date()
    status, lines = audit(asked.service, asked.lock, asked.accepted, today)
    if status == UNANSWERED and asked.go_on:
        status = CLEAN
        lines[-1] += "; this run goes on without it"
    elif status == UNANSWERED:
        lines.append("the packages are NOT known to be without weaknesses: try it where it answers")
    sys.stdout.write("".join(f"audit: {line}\n" for line in lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
