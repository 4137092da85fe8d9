"""Write the files of the present schema version; those that exist stay as they are."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pilotage.persistence.codec import SCHEMA_VERSION
from tests.golden.snapshots.samples import SAMPLES, encoded, shown

FOLDER = Path(__file__).parent


def main() -> None:
    folder = FOLDER / f"v{SCHEMA_VERSION}"
    folder.mkdir(exist_ok=True)
    for name, value in SAMPLES.items():
        binary = folder / f"{name}.bin"
        if not binary.exists():
            binary.write_bytes(encoded(name, value))
            text = msgspec.json.format(msgspec.json.encode(shown(value)), indent=2)
            binary.with_suffix(".json").write_bytes(text + b"\n")


if __name__ == "__main__":
    main()
