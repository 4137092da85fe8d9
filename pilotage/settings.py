"""What can be set, where each value came from, and what is wrong with it.

One table, `ROWS`, says everything about a setting: its name, its default, how it is read, what it
may be. A value comes from a flag, else the environment (`PILOTAGE_PORT`), else the file
`pilotage.toml` (`port`), else the default. Names that are not in the table are refused, so that a
typing error cannot silently leave a default in force; all problems are reported at once.

Durations are read as `30s`, `15m`, `12h`, `7d`, `2w`, sums of these (`1d12h`) or plain seconds.
An environment variable that is set but empty counts as not set.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from pilotage.runtime.errors import PilotageError

FsyncPolicy = Literal["everysec", "always", "no"]
LogFormat = Literal["auto", "pretty", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

PREFIX = "PILOTAGE_"
# Read by clients, not by the server; they share the prefix and may be set on the same machine.
CLIENT_VARIABLES = frozenset({"PILOTAGE_URL", "PILOTAGE_API_KEY", "PILOTAGE_PROJECT"})
MASK = "********"

DAY_SECS = 86_400
UNIT_SECS = {"s": 1, "m": 60, "h": 3_600, "d": DAY_SECS, "w": 7 * DAY_SECS}
# Ten years: longer than anybody means, short enough for every store's expiry arithmetic.
MAX_DURATION_SECS = 3_650 * DAY_SECS


class SettingsError(PilotageError):
    """The settings cannot be used. `problems` lists everything that is wrong, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = tuple(problems)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, checked. `ROWS` and docs/settings.md describe them."""

    host: str = "127.0.0.1"
    port: int = 8080
    data_dir: Path = Path(".pilotage")
    redis_url: str | None = None
    server_binary: Path | None = None
    admin_key: str | None = None
    allow_private_endpoints: bool = False
    snapshot_fsync: FsyncPolicy = "everysec"
    retention_completed_secs: int = 7 * DAY_SECS
    retention_failed_secs: int = 30 * DAY_SECS
    retention_canceled_secs: int = 7 * DAY_SECS
    retention_timed_out_secs: int = 30 * DAY_SECS
    max_active_runs: int = 200_000
    passivate_after_secs: int = 600
    log_format: LogFormat = "auto"
    log_level: LogLevel = "info"
    shards: int = 1
    namespace: str = "pilotage"
    store_wait_secs: int = 30
    lease_secs: int = 10
    grace_secs: int = 30
    rate_limit: int = 0
    auth_failure_limit: int = 20
    metrics_public: bool = False
    docs: bool = True

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class LoadedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings, and for each one by its field name where its value came from."""

    settings: Settings
    origins: dict[str, str]


# ---- reading a value

Reader = Callable[[object], object]


def read_bool(value: object) -> bool:
    """`true`, `yes`, `on`, `1` and their opposites."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in {"true", "yes", "on", "1"}:
        return True
    if word in {"false", "no", "off", "0"}:
        return False
    raise ValueError("must be true or false")


def read_duration(value: object) -> int:
    """Whole seconds from `7d`, `90s`, `1d12h` or a plain number of seconds."""
    text = "" if isinstance(value, bool) else str(value).strip().lower()
    if re.fullmatch(r"[0-9]{1,12}", text):
        return int(text)
    if not re.fullmatch(r"([0-9]{1,12}[smhdw])+", text):
        raise ValueError("must be a duration such as 30s, 15m, 12h or 7d")
    return sum(int(n) * UNIT_SECS[unit] for n, unit in re.findall(r"([0-9]+)([smhdw])", text))


def _whole(low: int, high: int) -> Reader:
    def read(value: object) -> int:
        text = "" if isinstance(value, bool) else str(value).strip()
        if not re.fullmatch(r"-?[0-9]{1,15}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return read


def _duration(low: int, high: int) -> Reader:
    def read(value: object) -> int:
        secs = read_duration(value)
        if not low <= secs <= high:
            raise ValueError(f"must be from {duration_text(low)} to {duration_text(high)}")
        return secs

    return read


def _choice(*words: str) -> Reader:
    def read(value: object) -> str:
        word = str(value).strip().lower()
        if word not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return word

    return read


def _pattern(pattern: str, what: str) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"must be {what}")
        return value

    return read


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise ValueError("must be a path")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("must be a path; the home directory in it is not known") from None


def _redis_url(value: object) -> str:
    try:
        parts = urlsplit(str(value))
        _ = parts.port  # raises when it is not a port
    except ValueError:
        parts = urlsplit("")
    reachable = parts.path if parts.scheme == "unix" else parts.hostname
    if parts.scheme not in {"redis", "rediss", "unix"} or not reachable:
        raise ValueError(
            "must be a URL such as redis://host:6379/0, rediss://host:6379/0 or unix:///path"
        )
    return str(value)


# ---- the table


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One setting. `key` is its name in the file and as a flag; `field` its name in `Settings`."""

    key: str
    field: str
    read: Reader
    about: str
    secret: bool = False
    is_duration: bool = False

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.key.upper()


def _row(key: str, read: Reader, about: str, *, field: str = "", secret: bool = False) -> Row:
    return Row(
        key=key,
        field=field or key,
        read=read,
        about=about,
        secret=secret,
        is_duration=(field or key).endswith("_secs"),
    )


def _retention(status: str) -> Row:
    return _row(
        f"retention_{status}",
        _duration(1, MAX_DURATION_SECS),
        f"how long a run that is {status} is kept, unless it is pinned",
        field=f"retention_{status}_secs",
    )


ROWS: tuple[Row, ...] = (
    _row("host", _pattern(r"[^\s/]{1,253}", "a host name or address"), "address to listen on"),
    _row("port", _whole(0, 65_535), "port to listen on; 0 takes a free one"),
    _row("data_dir", _path, "directory of the embedded store and of the development key"),
    _row("redis_url", _redis_url, "Redis or Valkey to use instead of the embedded server"),
    _row("server_binary", _path, "server program to embed instead of the bundled one"),
    _row(
        "admin_key",
        _pattern(r"[!-~]{16,200}", "16 to 200 visible ASCII characters without spaces"),
        "the first admin key; generated when the address is a loopback address",
        secret=True,
    ),
    _row("allow_private_endpoints", read_bool, "whether HTTP steps may call private addresses"),
    _row(
        "snapshot_fsync",
        _choice("everysec", "always", "no"),
        "when the embedded server forces its file to disk",
    ),
    _retention("completed"),
    _retention("failed"),
    _retention("canceled"),
    _retention("timed_out"),
    _row("max_active_runs", _whole(1, 10_000_000), "active runs at once; more are refused"),
    _row(
        "passivate_after",
        _duration(0, MAX_DURATION_SECS),
        "how long a run that waits is kept in memory; 0 keeps all of them there",
        field="passivate_after_secs",
    ),
    _row("log_format", _choice("auto", "pretty", "json"), "auto: pretty on a terminal, else JSON"),
    _row("log_level", _choice("debug", "info", "warning", "error"), "the least that is logged"),
    _row("shards", _whole(1, 65_536), "shards of this installation; fixed once runs exist"),
    _row(
        "namespace",
        _pattern(r"[a-z0-9][a-z0-9_-]{0,31}", "1 to 32 of a-z, 0-9, '-' and '_'"),
        "prefix of all keys in the store",
    ),
    _row(
        "store_wait_secs",
        _duration(0, 3_600),
        "how long a start waits for a store that is away, or loads and gets no further",
    ),
    _row("lease_secs", _duration(1, 300), "how long a lease on a shard holds without renewal"),
    _row("grace_secs", _duration(0, 3_600), "what attempts in progress get at a stop"),
    _row("rate_limit", _whole(0, 1_000_000), "requests a minute and key; 0 is no limit"),
    _row(
        "auth_failure_limit",
        _whole(1, 1_000_000),
        "failed authentications a minute and address; never refuses a valid key",
    ),
    _row("metrics_public", read_bool, "whether /metrics answers without a key"),
    _row("docs", read_bool, "whether the API docs are served"),
)
BY_KEY: Mapping[str, Row] = {row.key: row for row in ROWS}
# What `pilotage dev` takes for granted.
DEVELOPMENT_DEFAULTS: Mapping[str, object] = {"allow_private_endpoints": True}


# ---- loading


def load_settings(
    flags: Mapping[str, object | None],
    environ: Mapping[str, str],
    toml_path: Path | None,
    *,
    development: bool = False,
) -> LoadedSettings:
    """The settings from all sources, or `SettingsError` with everything that is wrong.

    `flags` are by key (`port`), None where not given. `toml_path` None means that there is no file.
    """
    problems: list[str] = []
    found: dict[str, tuple[str, object]] = {}
    if development:
        found |= {key: ("development default", v) for key, v in DEVELOPMENT_DEFAULTS.items()}
    found |= _from_file(toml_path, problems)
    found |= _from_environment(environ, problems)
    found |= _from_flags(flags)
    values: dict[str, object] = {}
    origins = {row.field: "default" for row in ROWS}
    for key, (origin, raw) in found.items():
        row = BY_KEY[key]
        try:
            values[row.field] = row.read(raw)
        except ValueError as error:
            shown = MASK if row.secret else repr(_masked(row, raw))
            problems.append(f"{origin}: {row.key} {error}, not {shown}")
        origins[row.field] = origin
    if problems:
        raise SettingsError(problems)
    settings = msgspec.convert(values, Settings, dec_hook=_as_is)
    return LoadedSettings(settings=settings, origins=origins)


def require_admin_key(settings: Settings) -> None:
    """Refuse to serve to other machines without a key that the operator chose."""
    if settings.admin_key is None and not settings.is_loopback:
        problem = (
            f"host is {settings.host}, which other machines can reach, and there is no admin key: "
            "set PILOTAGE_ADMIN_KEY, or listen on 127.0.0.1"
        )
        raise SettingsError([problem])


def _from_flags(flags: Mapping[str, object | None]) -> dict[str, tuple[str, object]]:
    return {
        key: (f"flag --{key.replace('_', '-')}", value)
        for key, value in flags.items()
        if value is not None
    }


def _from_environment(
    environ: Mapping[str, str], problems: list[str]
) -> dict[str, tuple[str, object]]:
    found: dict[str, tuple[str, object]] = {}
    known = {row.variable: row.key for row in ROWS}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in CLIENT_VARIABLES:
            continue
        if name not in known:
            hint = _suggestion(name.removeprefix(PREFIX).lower(), variables=True)
            problems.append(f"environment: {name} is not a setting{hint}")
        elif environ[name]:
            found[known[name]] = (f"environment {name}", environ[name])
    return found


def _from_file(path: Path | None, problems: list[str]) -> dict[str, tuple[str, object]]:
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"file {path}: cannot be read: {error.strerror}")
        return {}
    except ValueError as error:
        problems.append(f"file {path}: is not TOML: {error}")
        return {}
    found: dict[str, tuple[str, object]] = {}
    for key, value in content.items():
        if key in BY_KEY:
            found[key] = (f"file {path.name}", value)
        else:
            plain = key.lower().replace("-", "_").removeprefix(PREFIX.lower())
            problems.append(
                f"file {path}: {key} is not a setting{_suggestion(plain, variables=False)}"
            )
    return found


def _suggestion(key: str, *, variables: bool) -> str:
    known = list(BY_KEY)
    if variables:
        known += [name.removeprefix(PREFIX).lower() for name in CLIENT_VARIABLES]
    close = difflib.get_close_matches(key, known, n=1)
    if not close:
        return "; `pilotage serve --print-config` lists what can be set"
    return f"; did you mean {PREFIX + close[0].upper() if variables else close[0]}?"


def _as_is(_wanted: type, value: object) -> object:
    return value


# ---- showing


def print_config(loaded: LoadedSettings) -> str:
    """What holds and where it came from, one line a setting; secrets are masked."""
    shown = [(row.variable, _shown(row, loaded.settings)) for row in ROWS]
    name_width = max(len(name) for name, _ in shown)
    value_width = min(40, max(len(value) for _, value in shown))
    return "\n".join(
        f"{name:<{name_width}} = {value:<{value_width}}  # {loaded.origins[row.field]}"
        for row, (name, value) in zip(ROWS, shown, strict=True)
    )


def _shown(row: Row, settings: Settings) -> str:
    value: object = getattr(settings, row.field)
    if value is None:
        return "(none)"
    if row.secret:
        return MASK
    if row.is_duration and isinstance(value, int):
        return duration_text(value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(_masked(row, value))


def _masked(row: Row, value: object) -> object:
    return mask_url(str(value)) if row.key == "redis_url" else value


def mask_url(url: str) -> str:
    """`url` without its password, also where it is in the query, for logs and messages."""
    masked = re.sub(r"(://[^:/?#@]*):.*@", rf"\1:{MASK}@", url)
    return re.sub(r"([?&]password=)[^&]*", rf"\1{MASK}", masked)


def duration_text(secs: int) -> str:
    """The shortest exact form: `7d`, `90s`, `36h`."""
    for unit in ("d", "h", "m"):
        if secs and secs % UNIT_SECS[unit] == 0:
            return f"{secs // UNIT_SECS[unit]}{unit}"
    return f"{secs}s"
