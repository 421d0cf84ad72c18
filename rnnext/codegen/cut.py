"""The cheapest choice under implications: a minimum cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from itertools import pairwise
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)

_UNBOUNDED = 1 << 60


def cheapest_closure(
    weights: Mapping[Item, int], implies: Iterable[tuple[Item, Item]], forced: Iterable[Item]
) -> set[Item]:
    """Choose items of least total weight (Picard 1976), by a minimum cut.

    Args:
        weights: of each item, negative or not.
        implies: pairs; whoever chooses the first must choose the second.
        forced: items that are chosen in any case.

    Returns:
        The items chosen; of equally cheap choices the smallest.

    Example:
        >>> weights = {"a": -3, "b": 2, "c": -1, "d": 5}
        >>> sorted(cheapest_closure(weights, [("a", "b"), ("c", "d")], []))
        ['a', 'b']
    """
    source, sink = object(), object()
    capacity: dict[object, dict[object, int]] = {source: {}, sink: {}}

    def connect(tail: object, head: object, bound: int) -> None:
        capacity.setdefault(tail, {})[head] = bound
        capacity.setdefault(head, {}).setdefault(tail, 0)

    for item, weight in weights.items():
        if weight < 0:
            connect(source, item, -weight)
        else:
            connect(item, sink, weight)
    for choice, consequence in implies:
        connect(choice, consequence, _UNBOUNDED)
    for item in forced:
        connect(source, item, _UNBOUNDED)

    # Edmonds and Karp: more flow along a shortest path while there is one.
    while True:
        before: dict[object, object] = {source: source}
        queue: deque[object] = deque([source])
        while queue and sink not in before:
            tail = queue.popleft()
            for head, left in capacity[tail].items():
                if left > 0 and head not in before:
                    before[head] = tail
                    queue.append(head)
        if sink not in before:
            return {item for item in weights if item in before}
        path: list[object] = [sink]
        while path[-1] is not source:
            path.append(before[path[-1]])
        edges = [(tail, head) for head, tail in pairwise(path)]
        flow = min(capacity[tail][head] for tail, head in edges)
        for tail, head in edges:
            capacity[tail][head] -= flow
            capacity[head][tail] += flow
