"""Settings: where values come from, what is refused, what is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from pilotage.settings import (
    BY_KEY,
    CLIENT_VARIABLES,
    ROWS,
    LoadedSettings,
    Settings,
    SettingsError,
    duration_text,
    load_settings,
    mask_url,
    print_config,
    read_bool,
    read_duration,
    require_admin_key,
)

KEY = "plt_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"


def from_environment(**values: str) -> Settings:
    environ = {f"PILOTAGE_{key.upper()}": value for key, value in values.items()}
    return load_settings({}, environ, None).settings


def problems_of(
    environ: dict[str, str] | None = None,
    flags: dict[str, object | None] | None = None,
    toml: Path | None = None,
) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refused:
        load_settings(flags or {}, environ or {}, toml)
    assert str(refused.value) == "\n".join(refused.value.problems)
    return refused.value.problems


def toml_file(folder: Path, text: str) -> Path:
    path = folder / "pilotage.toml"
    path.write_text(text)
    return path


def test_the_defaults_are_those_of_the_documentation() -> None:
    loaded = load_settings({}, {}, None)
    assert loaded.settings == Settings(
        host="127.0.0.1",
        port=8080,
        data_dir=Path(".pilotage"),
        redis_url=None,
        server_binary=None,
        admin_key=None,
        allow_private_endpoints=False,
        snapshot_fsync="everysec",
        retention_completed_secs=7 * 86_400,
        retention_failed_secs=30 * 86_400,
        retention_canceled_secs=7 * 86_400,
        retention_timed_out_secs=30 * 86_400,
        max_active_runs=200_000,
        passivate_after_secs=600,
        log_format="auto",
        log_level="info",
        shards=1,
        namespace="pilotage",
        store_wait_secs=30,
        lease_secs=10,
        grace_secs=30,
        rate_limit=0,
        auth_failure_limit=20,
        metrics_public=False,
        docs=True,
    )
    assert set(loaded.origins.values()) == {"default"}


def test_the_table_and_the_struct_name_the_same_settings() -> None:
    assert {row.field for row in ROWS} == set(Settings.__struct_fields__)
    assert len(BY_KEY) == len(ROWS)
    assert all(row.about for row in ROWS)


def test_flags_win_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    toml = toml_file(tmp_path, 'host = "::1"\nport = 1111\nshards = 4\n')
    loaded = load_settings(
        {"port": 3333, "host": None, "shards": None},
        {"PILOTAGE_PORT": "2222", "PILOTAGE_SHARDS": "2"},
        toml,
    )
    assert (loaded.settings.port, loaded.origins["port"]) == (3333, "flag --port")
    assert (loaded.settings.shards, loaded.origins["shards"]) == (2, "environment PILOTAGE_SHARDS")
    assert (loaded.settings.host, loaded.origins["host"]) == ("::1", "file pilotage.toml")
    assert loaded.origins["namespace"] == "default"


def test_every_setting_can_be_set_in_the_environment() -> None:
    settings = from_environment(
        host="localhost",
        port="0",
        data_dir="/var/lib/pilotage",
        redis_url="rediss://user:secret@store:6380/1",
        server_binary="/usr/bin/redis-server",
        admin_key=KEY,
        allow_private_endpoints="yes",
        snapshot_fsync="ALWAYS",
        retention_completed="1d12h",
        retention_failed="90s",
        retention_canceled="3600",
        retention_timed_out="2w",
        max_active_runs="5",
        passivate_after="2h",
        log_format="json",
        log_level="Debug",
        shards="16",
        namespace="team-a_1",
        store_wait_secs="2m",
        lease_secs="1m",
        grace_secs="0",
        rate_limit="600",
        auth_failure_limit="5",
        metrics_public="on",
        docs="0",
    )
    assert settings == Settings(
        host="localhost",
        port=0,
        data_dir=Path("/var/lib/pilotage"),
        redis_url="rediss://user:secret@store:6380/1",
        server_binary=Path("/usr/bin/redis-server"),
        admin_key=KEY,
        allow_private_endpoints=True,
        snapshot_fsync="always",
        retention_completed_secs=36 * 3_600,
        retention_failed_secs=90,
        retention_canceled_secs=3_600,
        retention_timed_out_secs=14 * 86_400,
        max_active_runs=5,
        passivate_after_secs=7_200,
        log_format="json",
        log_level="debug",
        shards=16,
        namespace="team-a_1",
        store_wait_secs=120,
        lease_secs=60,
        grace_secs=0,
        rate_limit=600,
        auth_failure_limit=5,
        metrics_public=True,
        docs=False,
    )


def test_every_setting_can_be_set_by_its_key_in_the_file(tmp_path: Path) -> None:
    values = {
        "port": "9090",
        "docs": "false",
        "redis_url": '"unix:///run/redis.sock"',
        "retention_completed": '"1h"',
        "lease_secs": "20",
    }
    toml = toml_file(tmp_path, "\n".join(f"{key} = {value}" for key, value in values.items()))
    settings = load_settings({}, {}, toml).settings
    assert settings.port == 9090
    assert settings.docs is False
    assert settings.redis_url == "unix:///run/redis.sock"
    assert settings.retention_completed_secs == 3_600
    assert settings.lease_secs == 20


def test_an_empty_variable_is_not_set() -> None:
    assert from_environment(redis_url="", port="") == Settings()


def test_other_variables_and_those_of_clients_are_left_alone() -> None:
    environ = dict.fromkeys([*CLIENT_VARIABLES, "PATH", "PORT"], "1")
    assert load_settings({}, environ, None).settings == Settings()


def test_development_has_defaults_of_its_own_that_give_way() -> None:
    loaded = load_settings({}, {}, None, development=True)
    assert loaded.settings.allow_private_endpoints is True
    assert loaded.origins["allow_private_endpoints"] == "development default"
    environ = {"PILOTAGE_ALLOW_PRIVATE_ENDPOINTS": "false"}
    loaded = load_settings({}, environ, None, development=True)
    assert loaded.settings.allow_private_endpoints is False


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    toml = toml_file(tmp_path, 'prot = 1\nshards = 0\nRETENTION_FAILED = "1d"\nzzz = 1\n')
    problems = problems_of(
        {"PILOTAGE_PROT": "1", "PILOTAGE_LOG_LEVEL": "loud", "PILOTAGE_QQQ": ""},
        {"namespace": "A{b}"},
        toml,
    )
    listed = "`pilotage serve --print-config` lists what can be set"
    assert problems == (
        f"file {toml}: prot is not a setting; did you mean port?",
        f"file {toml}: RETENTION_FAILED is not a setting; did you mean retention_failed?",
        f"file {toml}: zzz is not a setting; {listed}",
        "environment: PILOTAGE_PROT is not a setting; did you mean PILOTAGE_PORT?",
        f"environment: PILOTAGE_QQQ is not a setting; {listed}",
        "file pilotage.toml: shards must be a whole number from 1 to 65536, not 0",
        "environment PILOTAGE_LOG_LEVEL: log_level must be one of debug, info, warning, error, not "
        + repr("loud"),
        "flag --namespace: namespace must be 1 to 32 of a-z, 0-9, '-' and '_', not 'A{b}'",
    )


def test_a_full_variable_name_in_the_file_is_explained(tmp_path: Path) -> None:
    toml = toml_file(tmp_path, "PILOTAGE_PORT = 1\n")
    assert problems_of(toml=toml)[0].endswith("is not a setting; did you mean port?")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("host", "a b", "must be a host name or address"),
        ("port", "65536", "must be a whole number from 0 to 65535"),
        ("port", "8080.5", "must be a whole number"),
        ("port", "-1", "must be a whole number"),
        ("redis_url", "http://x", "must be a URL such as redis://"),
        ("redis_url", "redis://", "must be a URL such as redis://"),
        ("redis_url", "redis://h:port", "must be a URL such as redis://"),
        ("redis_url", "unix://", "must be a URL such as redis://"),
        ("data_dir", "a\0b", "must be a path"),
        ("data_dir", "~nobody-has-this-name/data", "must be a path; the home directory"),
        ("allow_private_endpoints", "maybe", "must be true or false"),
        ("snapshot_fsync", "never", "must be one of everysec, always, no"),
        ("retention_failed", "soon", "must be a duration such as"),
        ("retention_failed", "0", "must be from 1s to 3650d"),
        ("retention_failed", "3651d", "must be from 1s to 3650d"),
        ("max_active_runs", "0", "must be a whole number from 1"),
        ("log_format", "xml", "must be one of auto, pretty, json"),
        ("shards", "65537", "must be a whole number from 1 to 65536"),
        ("lease_secs", "0", "must be from 1s to 5m"),
        ("grace_secs", "2h", "must be from 0s to 1h"),
        ("auth_failure_limit", "0", "must be a whole number from 1"),
        ("rate_limit", "1e3", "must be a whole number from 0"),
    ],
)
def test_values_out_of_bounds_are_refused_with_what_is_allowed(
    key: str, value: str, said: str
) -> None:
    (problem,) = problems_of({f"PILOTAGE_{key.upper()}": value})
    assert problem.startswith(f"environment PILOTAGE_{key.upper()}: {key} {said}")
    assert problem.endswith(f"not {value!r}")


@pytest.mark.parametrize("toml", ["port = true", "retention_failed = true", "data_dir = 1"])
def test_a_value_of_the_wrong_kind_in_the_file_is_refused(tmp_path: Path, toml: str) -> None:
    assert len(problems_of(toml=toml_file(tmp_path, toml))) == 1


def test_a_refused_secret_is_not_shown() -> None:
    (problem,) = problems_of({"PILOTAGE_ADMIN_KEY": "short secret"})
    assert "secret" not in problem
    assert "16 to 200" in problem


def test_a_refused_redis_url_does_not_show_its_password() -> None:
    (problem,) = problems_of({"PILOTAGE_REDIS_URL": "redis://u:hunter2@host:bad"})
    assert "hunter2" not in problem


def test_a_file_that_is_not_there_or_not_toml_is_a_problem(tmp_path: Path) -> None:
    (problem,) = problems_of(toml=tmp_path / "none.toml")
    assert "cannot be read: No such file" in problem
    (problem,) = problems_of(toml=toml_file(tmp_path, "port = = 1"))
    assert "is not TOML" in problem
    broken = tmp_path / "latin.toml"
    broken.write_bytes(b'host = "\xff"')
    (problem,) = problems_of(toml=broken)
    assert "is not TOML" in problem


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_a_loopback_address_needs_no_admin_key(host: str) -> None:
    require_admin_key(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil.org"])
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(SettingsError, match=f"{re.escape(host)}.*PILOTAGE_ADMIN_KEY"):
        require_admin_key(Settings(host=host))
    require_admin_key(Settings(host=host, admin_key=KEY))


def test_print_config_shows_every_setting_with_its_origin_and_no_secret() -> None:
    loaded = load_settings(
        {"port": 9000},
        {
            "PILOTAGE_ADMIN_KEY": KEY,
            "PILOTAGE_REDIS_URL": "redis://user:hunter2@store:6379/0?password=hunter3&db=1",
        },
        None,
    )
    split = [line.split(" = ") for line in print_config(loaded).splitlines()]
    lines = {name.strip(): rest for name, rest in split}
    assert list(lines) == [row.variable for row in ROWS]
    assert lines["PILOTAGE_PORT"].split() == ["9000", "#", "flag", "--port"]
    assert lines["PILOTAGE_ADMIN_KEY"].split()[0] == "********"
    assert "# environment PILOTAGE_ADMIN_KEY" in lines["PILOTAGE_ADMIN_KEY"]
    assert lines["PILOTAGE_RETENTION_COMPLETED"].split() == ["7d", "#", "default"]
    assert lines["PILOTAGE_DOCS"].split()[0] == "true"
    assert lines["PILOTAGE_SERVER_BINARY"].split()[0] == "(none)"
    for secret in (KEY, "hunter2", "hunter3"):
        assert secret not in print_config(loaded)
    assert "user" in lines["PILOTAGE_REDIS_URL"]


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:p@h:1/0", "redis://:********@h:1/0"),
        ("redis://u:p%40@h", "redis://u:********@h"),
        ("unix://u:p@/run/s.sock", "unix://u:********@/run/s.sock"),
        ("unix:///s.sock?db=1&password=p", "unix:///s.sock?db=1&password=********"),
    ],
)
def test_a_masked_url_keeps_everything_but_the_password(url: str, masked: str) -> None:
    assert mask_url(url) == masked


@given(secs=st.integers(0, 10**9))
def test_a_duration_that_is_shown_reads_back_as_itself(secs: int) -> None:
    assert read_duration(duration_text(secs)) == secs


@given(text=st.text(max_size=20))
def test_no_text_breaks_a_reader(text: str) -> None:
    for row in ROWS:
        try:
            row.read(text)
        except ValueError as error:
            assert str(error).startswith("must be")  # noqa: PT017 - both outcomes are fine


def test_read_bool_takes_booleans() -> None:
    assert read_bool(True) is True
    assert read_bool(False) is False


def test_loaded_settings_are_frozen() -> None:
    loaded: LoadedSettings = load_settings({}, {}, None)
    with pytest.raises(AttributeError):
        loaded.settings.port = 1  # type: ignore[misc]


def test_the_documentation_has_every_setting_with_its_default() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert all(f"`{name}`" in page.read_text() for name in CLIENT_VARIABLES)
    documented = re.findall(
        r"^\| `(PILOTAGE_\w+)` \| `?(.+?)`? \| (.+) \|$", page.read_text(), re.MULTILINE
    )
    lines = [line.split(" = ") for line in print_config(load_settings({}, {}, None)).splitlines()]
    defaults = {name.strip(): rest.rpartition("#")[0].strip() for name, rest in lines}
    assert documented == [(row.variable, defaults[row.variable], row.about) for row in ROWS]
