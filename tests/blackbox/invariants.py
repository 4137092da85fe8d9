"""What must hold of a run at every moment, whatever was done to it (sections 2, 3, 4, 6)."""

from __future__ import annotations

from collections import Counter

from tests.blackbox.api import Api, Json, Steps

TERMINAL_STEP = {"completed", "failed", "skipped", "canceled"}
TERMINAL_RUN = {"completed", "failed", "timed_out", "canceled"}


class Watched:
    """One run, looked at again and again; remembers what may not change."""

    def __init__(self, api: Api, run_id: str, definition: list[Json], max_parallel: int) -> None:
        self.api = api
        self.run_id = run_id
        self.steps_by_ref = {step["step_ref"]: step for step in definition}
        self.max_parallel = max_parallel
        self.attempts: dict[str, int] = {}
        self.ids: dict[str, str] = {}

    def snapshot(self) -> tuple[Json, Steps]:
        """Run and steps of one moment: nothing moved between the two reads."""
        while True:
            run, steps = self.api.run(self.run_id), self.api.steps(self.run_id)
            if (run, steps) == (self.api.run(self.run_id), self.api.steps(self.run_id)):
                return run, steps

    def problems(self) -> list[str]:
        run, steps = self.snapshot()
        found = [f"run: {text}" for text in run_problems(run, steps)]
        found += [f"run: {text}" for text in self._limits(steps)]
        for ref, step in steps.items():
            found += [f"{ref}: {text}" for text in step_problems(step, ended=ended(run))]
            found += [f"{ref}: {text}" for text in self._memory(ref, step)]
            if not ended(run):
                found += [f"{ref}: {text}" for text in self._dependencies(ref, steps)]
        return found

    def _memory(self, ref: str, step: Json) -> list[str]:
        found: list[str] = []
        if step["attempt"] < self.attempts.get(ref, 0):
            found.append(f"attempt went down to {step['attempt']}")
        if self.ids.setdefault(ref, step["id"]) != step["id"]:
            found.append("the id changed")
        self.attempts[ref] = step["attempt"]
        return found

    def _dependencies(self, ref: str, steps: Steps) -> list[str]:
        dependencies: list[str] = self.steps_by_ref[ref].get("depends_on", [])
        satisfied = sum(self._satisfies(steps[other]) for other in dependencies)
        step = steps[ref]
        counts = (step["deps_completed"], step["deps_required"])
        if counts == (satisfied, len(dependencies)):
            return []
        return [f"counts {counts} instead of {(satisfied, len(dependencies))}"]

    def _satisfies(self, step: Json) -> bool:
        if step["status"] == "failed":
            definition = self.steps_by_ref[step["step_ref"]]
            return bool(definition.get("on_failure") == "continue")
        if step["status"] == "skipped":
            return bool(step["skipped_by"] != "dependency")
        return bool(step["status"] == "completed")

    def _limits(self, steps: Steps) -> list[str]:
        running = [ref for ref, step in steps.items() if step["status"] == "running"]
        found: list[str] = []
        if 0 < self.max_parallel < len(running):
            found.append(f"{len(running)} steps run, {self.max_parallel} may")
        keys = Counter(self.steps_by_ref[ref].get("concurrency_key") for ref in running)
        del keys[None]
        found += [f"{count} steps run under {key}" for key, count in keys.items() if count > 1]
        return found


def ended(run: Json) -> bool:
    return run["status"] in TERMINAL_RUN


def run_problems(run: Json, steps: Steps) -> list[str]:
    found: list[str] = []
    open_steps = [ref for ref, step in steps.items() if step["status"] not in TERMINAL_STEP]
    if ended(run) == bool(open_steps) and run["status"] != "pending":
        found.append(f"is {run['status']}, open steps {open_steps}")
    if ended(run) != ("finished_at" in run):
        found.append("finished_at does not fit the status")
    if run["status"] == "failed" and "error" not in run:
        found.append("failed without an error")
    if not ended(run) and "error" in run:
        found.append("active with an error")
    return found


def step_problems(step: Json, *, ended: bool) -> list[str]:
    found: list[str] = []
    over = step["status"] in TERMINAL_STEP
    if ("waiting_for" in step) != (step["status"] in {"waiting", "pending"}):
        found.append(f"waiting_for does not fit {step['status']}")
    if over != ("finished_at" in step):
        found.append("finished_at does not fit the status")
    if not over and ({"output", "skipped_by"} & step.keys()):
        found.append("open, but with the marks of an end")
    if step["status"] == "failed" and "error" not in step:
        found.append("failed without an error")
    if (step["status"] == "skipped") != ("skipped_by" in step):
        found.append("skipped_by does not fit the status")
    return found
