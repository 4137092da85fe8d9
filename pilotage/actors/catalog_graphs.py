"""Step graphs of workflow versions, shared by all their runs.

Building the graph of ten thousand steps takes a good part of a second, so graphs are kept:
recently used ones within bounds, and any that a run still holds as long as it does.
"""

from __future__ import annotations

from collections import OrderedDict
from weakref import WeakValueDictionary

from pilotage.runtime.definition import WorkflowSpec
from pilotage.runtime.graph import StepGraph

MAX_GRAPHS = 1_000
MAX_STEPS = 100_000


class GraphCache:
    """Version id to graph; the same object as long as anybody uses it."""

    def __init__(self, max_graphs: int = MAX_GRAPHS, max_steps: int = MAX_STEPS) -> None:
        self._max_graphs = max_graphs
        self._max_steps = max_steps
        self._recent: OrderedDict[str, StepGraph] = OrderedDict()
        self._in_use: WeakValueDictionary[str, StepGraph] = WeakValueDictionary()
        self._steps = 0

    def get(self, version_id: str) -> StepGraph | None:
        graph = self._in_use.get(version_id)
        if graph is not None:
            self._keep(version_id, graph)
        return graph

    def build(self, version_id: str, spec: WorkflowSpec) -> StepGraph:
        """The graph of `spec`; the one there is, if somebody built it meanwhile."""
        graph = self.get(version_id)
        if graph is None:
            graph = StepGraph(spec)
            self._in_use[version_id] = graph
            self._keep(version_id, graph)
        return graph

    def _keep(self, version_id: str, graph: StepGraph) -> None:
        if version_id in self._recent:
            self._recent.move_to_end(version_id)
            return
        self._recent[version_id] = graph
        self._steps += graph.size
        while len(self._recent) > 1 and (
            len(self._recent) > self._max_graphs or self._steps > self._max_steps
        ):
            self._steps -= self._recent.popitem(last=False)[1].size
