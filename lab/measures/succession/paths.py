r"""Chains of latents that lead, over time, to the latents tied to some knowledge.

The time-expanded graph has a node (latent, τ) for τ = −horizon … 0 tokens before now, and for each
edge j → i at lag ℓ arcs (j, τ) → (i, τ + ℓ) of capacity C_ℓ[j→i]. A maximum flow runs from the
upstream latents at any earlier time to the target latents at τ = 0; it is taken apart into paths,
the widest first. Each path is a chain, and its width says how much it alone carries.
Source: max-flow of igraph; flow decomposition by widest paths (Ford & Fulkerson 1962).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import igraph
import pandas as pd

from tsae.saes.config import require


class Chain(NamedTuple):
    """Latents in order of time, the lags between them in tokens, and the flow along the path."""

    latents: tuple[int, ...]
    lags: tuple[int, ...]
    flow: float


def upstream(table: pd.DataFrame, targets: Iterable[int]) -> list[int]:
    """Latents from which a target can be reached and that nothing leads to; if there is none (a
    cycle), all from which a target can be reached, other than the targets."""
    before = defaultdict(set)
    for source, target in zip(table["source"], table["target"], strict=True):
        before[int(target)].add(int(source))
    targets = {int(t) for t in targets}
    stack = list(targets)
    reached: set[int] = set()
    while stack:
        for source in before[stack.pop()] - reached:
            reached.add(source)
            stack.append(source)
    roots = {latent for latent in reached if not before[latent]} or reached
    return sorted(roots - targets)


def find_chains(
    table: pd.DataFrame,
    targets: Iterable[int],
    sources: Iterable[int] | None = None,
    *,
    horizon: int = 24,
    limit: int = 50,
) -> list[Chain]:
    """Chains that end at ``targets``, by falling flow, at most ``limit``.

    ``table``: columns source, target, lag and the capacity C (see
    :func:`lab.measures.succession.edges.dependencies`; keep the significant rows). ``sources``: by
    default :func:`upstream`. Empty where nothing leads to a target. Raises ValueError on a bad
    horizon or a negative capacity.
    """
    require(horizon >= 1, "horizon", horizon, "at least 1")
    lowest = float(table["C"].min()) if len(table) else 0.0
    require(lowest >= 0, "C", lowest, "at least 0 in every edge")
    targets = sorted({int(t) for t in targets})
    sources = upstream(table, targets) if sources is None else sorted({int(s) for s in sources})
    kept = table.loc[table["C"] > 0, ["source", "target", "lag", "C"]]
    edges = [(int(s), int(t), int(k), float(c)) for s, t, k, c in kept.itertuples(index=False)]
    latents = sorted({latent for s, t, _, _ in edges for latent in (s, t)} | {*targets, *sources})
    number = {latent: n for n, latent in enumerate(latents)}
    steps = horizon + 1

    def node(latent: int, tau: int) -> int:
        return 2 + number[latent] * steps + tau + horizon

    start, end, unlimited = 0, 1, sum(c for *_, c in edges) * steps + 1.0
    arcs, widths = [], []
    for s, t, lag, c in edges:
        for tau in range(-horizon, 1 - lag):
            arcs.append((node(s, tau), node(t, tau + lag)))
            widths.append(c)
    arcs += [(start, node(s, tau)) for s in sources for tau in range(-horizon, 0)]
    arcs += [(node(t, 0), end) for t in targets]
    widths += [unlimited] * (len(arcs) - len(widths))
    graph = igraph.Graph(2 + len(latents) * steps, arcs, directed=True)
    flow = graph.maxflow(start, end, widths).flow
    return list(_paths(arcs, flow, start, end, latents, steps, limit))


def _paths(arcs, flow, start, end, latents, steps, limit):
    """Take the widest path out of the flow until nothing is left. The graph has no cycles."""
    after: dict[int, dict[int, float]] = defaultdict(dict)
    for (a, b), f in zip(arcs, flow, strict=True):
        if f > 1e-9:
            after[a][b] = after[a].get(b, 0.0) + f
    time = {start: -(10**9), end: 10**9}
    order = sorted({*after, end}, key=lambda n: time.get(n, (n - 2) % steps))
    for _ in range(limit):
        width, previous = {start: float("inf")}, {}
        for a in order:
            for b, f in after[a].items() if a in width else ():
                if min(width[a], f) > width.get(b, 1e-9):
                    width[b], previous[b] = min(width[a], f), a
        if end not in previous:
            return
        path = [end]
        while path[-1] != start:
            path.append(previous[path[-1]])
        path.reverse()
        for a, b in zip(path, path[1:], strict=False):
            after[a][b] -= width[end]
            if after[a][b] <= 1e-9:
                del after[a][b]
        inner = [divmod(n - 2, steps) for n in path[1:-1]]
        ids, taus = zip(*((latents[i], tau) for i, tau in inner), strict=True)
        lags = tuple(b - a for a, b in zip(taus, taus[1:], strict=False))
        yield Chain(ids, lags, width[end])
