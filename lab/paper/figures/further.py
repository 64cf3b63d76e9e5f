"""The figures of single systems and evaluations: modules whose ``drawn`` gives what the tables allow,
and nothing where they lack the rows."""

from lab.paper.figures import (
    adaptation,
    arena,
    chains,
    composition,
    context,
    lifecycle,
    probing,
    strategies,
    structure,
    temporal_probing,
)

FURTHER = (
    adaptation,
    arena,
    chains,
    composition,
    context,
    lifecycle,
    probing,
    strategies,
    structure,
    temporal_probing,
)
