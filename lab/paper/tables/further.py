"""The LaTeX tables of single systems and evaluations: modules whose ``made`` gives what the tables allow,
and nothing where they lack the rows."""

from lab.paper.tables import (
    adaptation,
    arena,
    causal,
    chains,
    composition,
    context,
    glance,
    known,
    lifecycle,
    settings,
    structure,
    temporal_probing,
)

FURTHER = (
    adaptation,
    arena,
    causal,
    chains,
    composition,
    context,
    glance,
    known,
    lifecycle,
    settings,
    structure,
    temporal_probing,
)
