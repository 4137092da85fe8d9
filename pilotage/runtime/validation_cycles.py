"""Cycles in a graph of dependencies, without recursion, in time linear in its size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

MAX_CYCLES: Final = 20
"""Cycles worth listing; who has mended these tries again."""

_SHOWN_STEPS = 20


def find_cycles(dependencies: Sequence[Sequence[int]]) -> list[list[int]]:
    """One cycle of each knot, in the order of execution: each node runs before the next.

    `dependencies[i]` are the nodes that `i` waits for. A knot (strongly connected component) may
    hold more cycles; the one answered is a shortest through its first node and starts there.
    """
    dependents: list[list[int]] = [[] for _ in dependencies]
    for i, waits_for in enumerate(dependencies):
        for j in waits_for:
            dependents[j].append(i)
    tangled = _not_orderable(dependencies, dependents)
    cycles: list[list[int]] = []
    for knot in _knots(dependents, tangled):
        cycles.append(_shortest_cycle(min(knot), knot, dependents))
        if len(cycles) == MAX_CYCLES:
            break
    return sorted(cycles)


def show_cycle(names: Sequence[str]) -> str:
    """`a → b → c → a`; the middle of a long one is left out."""
    if len(names) > _SHOWN_STEPS:
        left_out = len(names) - _SHOWN_STEPS
        half = _SHOWN_STEPS // 2
        names = [*names[:half], f"… ({left_out} more)", *names[-half:]]
    return " → ".join([*names, names[0]])


def _not_orderable(
    dependencies: Sequence[Sequence[int]], dependents: Sequence[Sequence[int]]
) -> list[int]:
    """What is left when everything that can run has run: empty for a graph without cycles."""
    missing = [len(waits_for) for waits_for in dependencies]
    ready = [i for i, count in enumerate(missing) if not count]
    for i in ready:  # grows while it is read
        for j in dependents[i]:
            missing[j] -= 1
            if not missing[j]:
                ready.append(j)
    return [i for i, count in enumerate(missing) if count]


def _knots(edges: Sequence[Sequence[int]], nodes: Sequence[int]) -> list[set[int]]:
    """Strongly connected components of more than one node."""
    search = _KnotSearch(edges)
    for node in nodes:
        if node not in search.order:
            search.explore(node)
    return search.knots


class _KnotSearch:
    """Tarjan's algorithm (1972) with a stack of its own instead of recursion."""

    def __init__(self, edges: Sequence[Sequence[int]]) -> None:
        self.order: dict[int, int] = {}
        self.knots: list[set[int]] = []
        self._edges = edges
        self._low: dict[int, int] = {}
        self._open: list[int] = []
        self._is_open: set[int] = set()
        self._work: list[tuple[int, Iterator[int]]] = []

    def explore(self, root: int) -> None:
        self._enter(root)
        while self._work:
            node, successors = self._work[-1]
            for successor in successors:
                if successor not in self.order:
                    self._enter(successor)
                    break
                if successor in self._is_open:
                    self._low[node] = min(self._low[node], self.order[successor])
            else:
                self._leave(node)

    def _enter(self, node: int) -> None:
        self.order[node] = self._low[node] = len(self.order)
        self._open.append(node)
        self._is_open.add(node)
        self._work.append((node, iter(self._edges[node])))

    def _leave(self, node: int) -> None:
        self._work.pop()
        if self._work:
            parent = self._work[-1][0]
            self._low[parent] = min(self._low[parent], self._low[node])
        if self._low[node] == self.order[node]:
            knot: set[int] = set()
            while node not in knot:
                knot.add(self._open.pop())
            self._is_open -= knot
            if len(knot) > 1:
                self.knots.append(knot)


def _shortest_cycle(start: int, knot: set[int], edges: Sequence[Sequence[int]]) -> list[int]:
    """Breadth first from `start` back to it, within the knot."""
    came_from: dict[int, int] = {}
    queue = deque([start])
    while start not in came_from:
        node = queue.popleft()
        for successor in edges[node]:
            if successor in knot and successor not in came_from:
                came_from[successor] = node
                queue.append(successor)
    path = [came_from[start]]
    while path[-1] != start:
        path.append(came_from[path[-1]])
    return path[::-1]
