"""The arena in numbers: every system, every further metric, both worlds, in parts."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from lab.paper.figures.truth import interval
from lab.paper.tables.latex import MAIN, cell, floated, panel, rows_of_systems, seeds_note
from lab.results import tidy


class Part(NamedTuple):
    """One table: its columns (metric, group, head) and what its caption says."""

    columns: tuple[tuple[str, str, str], ...]
    caption: str


PARTS = {
    "fidelity": Part(
        (
            ("fve", "all", r"FVE $\uparrow$"),
            ("fve_saebench_original", "all", "FVE, orig."),
            ("cosine", "all", r"Cosine $\uparrow$"),
            ("l2_ratio", "all", "L2 ratio"),
            ("reconstruction_bias", "all", "Bias"),
            ("predicted_density", "all", "Dense part"),
        ),
        "Fidelity. FVE, orig.: the mean of ratios that SAEBench first reported, shown beside the "
        "ratio of means; Dense part: share of predicted codes that are not 0, which L0 leaves out.",
    ),
    "truth": Part(
        (
            *(("recovery_f1_excess", s, rf"{s[:3].title()}. F1* $\uparrow$") for s in tidy.SCALES),
            *(("mcc", s, rf"{s[:3].title()}. MCC $\uparrow$") for s in tidy.SCALES),
        ),
        "Truth. F1*: F1 of the best latent beyond its frequency-matched null, by time scale; MCC: "
        "mean correlation after one-to-one matching.",
    ),
    "time": Part(
        (
            ("tss", "all", r"TSS $\uparrow$"),
            ("boundary_f1", "all", r"Boundaries $\uparrow$"),
            ("boundary_f1_null", "all", "same, null"),
            ("temporal_consistency", "all", r"Consistency $\uparrow$"),
            ("temporal_consistency_null", "all", "same, null"),
            ("context_jaccard", "context=16", r"Context, 16 $\uparrow$"),
        ),
        "Time. TSS: cosine of neighbouring codes inside segments minus across boundaries, less its "
        "shuffled null; Boundaries: F1 within one token; Consistency: agreement of lagged "
        "dependencies between halves of the documents.",
    ),
    "probing": Part(
        tuple(
            ("probe_sparse", f"{scale}|k={k}", f"{scale[:3].title()}., $k={k}$")
            for scale in tidy.SCALES
            for k in (1, 5)
        ),
        r"Sparse probing: accuracy (chance 0.5) of probes on $k$ latents of mean codes of "
        "documents, sections and tokens. Residual stream: its $k$ best dimensions.",
    ),
    "editing": Part(
        (
            ("scr", "n=10", r"SCR$_{10}$ $\uparrow$"),
            ("scr", "n=50", r"SCR$_{50}$ $\uparrow$"),
            ("tpp", "n=10", r"TPP$_{10}$ $\uparrow$"),
            ("tpp", "n=50", r"TPP$_{50}$ $\uparrow$"),
            ("absorption", "all", r"Absorbed $\downarrow$"),
            ("absorption_fraction", "all", r"Fraction $\downarrow$"),
            ("detection", "all", r"Detection $\uparrow$"),
            ("explained_by_words", "all", r"By words $\uparrow$"),
        ),
        "Concepts. SCR and TPP when 10 or 50 latents are ablated; absorption of parents by "
        "children; detection: balanced accuracy of a lexical explanation on test tokens.",
    ),
}


def made(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, str]:
    """Every table of this file that the results allow, by name."""
    results = found["results"]
    written = {}
    for name, part in PARTS.items():
        own = {metric for metric, *_ in part.columns} - {metric for metric, _ in MAIN}
        if results["metric"].isin(own).any():
            written[f"table_arena_{name}"] = arena_table(
                results, name, found.get("documents"), smoke
            )
    return written


def arena_table(
    results: pd.DataFrame, name: str, documents: pd.DataFrame | None = None, smoke: bool = False
) -> str:
    r"""Systems × the metrics of one part, a panel a world.

    Mean ± s.e. over seeds; of a single seed, the 95% bootstrap interval over documents where
    ``documents`` holds the counts. Columns that nothing has are left out.
    """
    frame = tidy.main(tidy.prepare(results))
    part = PARTS[name]
    pairs = set(zip(frame["metric"], frame["group"], strict=True))
    columns = [column for column in part.columns if column[:2] in pairs]
    counts = None
    if documents is not None and len(documents):
        counts = tidy.main(tidy.prepare(documents, ("world", "variant", "metric", "group", "doc")))
    body = [" & ".join(["System", *(head for *_, head in columns)]) + r"\\"]
    for world in tidy.ordered(frame["world"]):
        here = frame[frame["world"] == world]
        here = here[
            [
                pair in {c[:2] for c in columns}
                for pair in zip(here["metric"], here["group"], strict=True)
            ]
        ]
        if here.empty:
            continue
        body += [r"\midrule", panel(world, len(columns) + 1)]

        def row(system: str, here=here, world=world) -> list[str]:
            mine, of_docs = here[here["system"] == system], None
            if counts is not None:
                of_docs = counts[(counts["world"] == world) & (counts["system"] == system)]
            return [bounded(mine, metric, group, of_docs) for metric, group, _ in columns]

        body += rows_of_systems(here, len(columns) + 1, row)
        if name == "probing":
            body.append(rf"\cmidrule(lr){{1-{len(columns) + 1}}}")
            first = tidy.ordered(here["system"])[0]
            of_world = frame[(frame["world"] == world) & (frame["system"] == first)]
            cells = [cell(of_world, "probe_residual", group) for _, group, _ in columns]
            body.append(" & ".join(["Residual stream", *cells]) + r"\\")
    caption = (
        f"{part.caption} {seeds_note(frame)} In brackets, of one seed: 95\\% bootstrap interval "
        "over documents, where a metric is a sum over them. Below the rule: nulls."
    )
    return floated(body, "l" + "r" * len(columns), caption, f"arena-{name}", smoke)


def bounded(frame: pd.DataFrame, metric: str, group: str, documents: pd.DataFrame | None) -> str:
    """A cell, with the interval over documents where there is one seed and the counts."""
    text = cell(frame, metric, group)
    rows = frame[(frame["metric"] == metric) & (frame["group"] == group)]
    if documents is None or rows["seed"].nunique() != 1:
        return text
    source, flip = {"fve": ("fvu", True), "l0": ("l0", False)}.get(metric, (metric, False))
    if metric == "probe_sparse" and not group.endswith("|k=5"):
        return text  # the counts are those of k = 5
    counts = documents[documents["metric"] == source]
    if group != "all":
        counts = counts[counts["group"].str.startswith(group.split("|")[0] + ":")]
    if counts.empty:
        return text
    low, high = interval(counts)
    if flip:
        low, high = 1 - high, 1 - low
    ends = (tidy.number(metric, end, rows["value"].iloc[0]) for end in (low, high))
    return rf"{text}\,{{\scriptsize[{', '.join(ends)}]}}"
