"""Write the store of the present schema version; one that exists stays as it is."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from redis import Redis

from pilotage.persistence.codec import SCHEMA_VERSION
from tests.blackbox.jobserver import JobServer
from tests.golden import stores
from tests.golden.stores.process import GoldenServer
from tests.golden.stores.story import PROJECT, fill
from tests.support.redis import ValkeyForTests


def main() -> None:
    file = stores.path(SCHEMA_VERSION)
    if file.exists():
        sys.stdout.write(f"{file.name} is there and stays as it is\n")
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyForTests(Path(folder)) as valkey,
        JobServer(time.monotonic) as jobs,
        GoldenServer(valkey.url, "hold", Path(folder) / "log") as server,
    ):
        api = server.api(PROJECT)
        notes = fill(api, jobs)
        server.kill()
        with Redis.from_url(valkey.url, protocol=2) as client:
            found = stores.contents(client)
    made_ms = time.time_ns() // 1_000_000
    stores.write(SCHEMA_VERSION, stores.GoldenStore(made_ms=made_ms, notes=notes, keys=found))
    sys.stdout.write(f"{file.name}: {len(found)} keys, {file.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
