"""Which server a command speaks to and with which key.

The address is `--url`, else PILOTAGE_URL, else what a development server on this machine wrote
down (`dev-url` in the data directory), else `http://127.0.0.1:8080`. The key is PILOTAGE_API_KEY,
else the development server's `dev-key`, and that one is only ever sent to this machine.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from pilotage.cli.client import ClientSettings

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_DATA_DIR = ".pilotage"
DEV_PROJECT = "default"
"""The project of `dev`, `demo`, `run` and of Python code that names none."""
DEV_KEY_FILE = "dev-key"
DEV_URL_FILE = "dev-url"
CONFIG_FILE = "pilotage.toml"


def data_dir() -> Path:
    """The data directory as `serve` would see it here, without loading the settings."""
    if configured := os.environ.get("PILOTAGE_DATA_DIR"):
        return Path(configured)
    try:
        config = tomllib.loads(Path(CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return Path(DEFAULT_DATA_DIR)
    value = config.get("data_dir")
    return Path(value) if isinstance(value, str) else Path(DEFAULT_DATA_DIR)


def is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, from its first byte on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def remember_dev_server(directory: Path, url: str, key: str) -> None:
    write_private(directory / DEV_KEY_FILE, key)
    write_private(directory / DEV_URL_FILE, url)


def forget_dev_server(directory: Path) -> None:
    """The key stays (it is valid at the next start too), the address does not."""
    (directory / DEV_URL_FILE).unlink(missing_ok=True)


def read_private(name: str, directory: Path | None = None) -> str | None:
    """A line that a development server wrote down; None without the file."""
    try:
        return ((directory or data_dir()) / name).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def client_settings(url: str | None = None, project: str | None = None) -> ClientSettings:
    """Options first, then the environment, then what a development server wrote down."""
    given = url or os.environ.get("PILOTAGE_URL")
    chosen = given or read_private(DEV_URL_FILE) or DEFAULT_URL
    named = project or os.environ.get("PILOTAGE_PROJECT") or None
    key = os.environ.get("PILOTAGE_API_KEY") or None
    if key is None and is_loopback(chosen):
        key = read_private(DEV_KEY_FILE)
        # That key is an admin key: it belongs to no project, so one is chosen here.
        named = named or (DEV_PROJECT if key else None)
    return ClientSettings(url=chosen.rstrip("/"), api_key=key, project=named, named=bool(given))
