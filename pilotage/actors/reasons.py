"""Why steps do not move: what limits, queues and executors know beyond a run's own state."""

from __future__ import annotations

import msgspec

from pilotage.actors.admission import JobKey, QueuePlace
from pilotage.actors.catalog import Catalog
from pilotage.actors.services import Services
from pilotage.runtime.graph import bits
from pilotage.runtime.insight_reasons import Note
from pilotage.runtime.state import RunState
from pilotage.runtime.views import rfc3339


def notes_about(state: RunState, services: Services, catalog: Catalog) -> dict[int | None, Note]:
    """By step; None: the run."""
    found = dict[int | None, Note]()
    place = services.admission.run_place(state.head.workflow_id, state.id)
    if place is not None:
        found[None] = _placed(place)
    for i in bits(state.masks.requested):
        job = (state.head.project_id, state.graph.steps[i].job_id or "")
        place = services.admission.step_place(job, state.id, i)
        if place is not None:
            found[i] = _placed(place, _called(catalog, job))
    for i in bits(state.masks.running):
        key = (state.id, i, state.step(i).attempt)
        why = services.executors.why_held(*key)
        job = (state.head.project_id, state.graph.steps[i].job_id or "")
        place = services.admission.step_place(job, state.id, i)
        if place is not None:  # the run was quarantined, and others have its slot
            note = _placed(place, _called(catalog, job))
            found[i] = msgspec.structs.replace(note, held=True)
        elif why is not None:
            until = services.executors.held_until_ms(*key)
            found[i] = Note(text=why, held=True, until_ms=until)
        elif (due := services.executors.times_out_ms(*key)) is not None:
            found[i] = Note(until_ms=due)
    return found


def _placed(place: QueuePlace, job: str = "") -> Note:
    text = f"it is number {place.position} in the queue for {place.limit} slots"
    if place.occupied:
        text += f", {place.occupied} of them taken by threads that did not stop at their timeout"
    if place.kept_until_ms is not None:
        text += f", {place.kept} of them kept by quarantined runs whose remote jobs work on,"
        text += f" the first until {rfc3339(place.kept_until_ms)}; release or discard those"
    return Note(text=text, job=job)


def _called(catalog: Catalog, job: JobKey) -> str:
    known = catalog.job_at_hand(*job)
    return "" if known is None else known.slug
