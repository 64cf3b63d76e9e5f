"""Temporal adaptation in intervals: its sign and size, one law or many, first half or second."""

import pandas as pd
from scipy import stats

from lab.measures.stats import paired_bootstrap
from lab.results.comparison import paired, shared

SYSTEM = "glta"
LEARNED = ("theta", "beta", "tau")
SCOPE = "scope=feature"
HALF = "positions=0.5"
HALVES = ("first", "second")
COMPARED = (("fvu", "all"), ("smoothness", "all"), ("ap", "document"))


def unchanged(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs that the ablations change: ``base`` where there is one, else the main ones."""
    base = rows[rows["ablation"] == "base"]
    return rows[rows["ablation"] == ""] if base.empty else base


def learned_intervals(results: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Mean over seeds of theta, beta and tau with a Student t interval, by world and setting.

    A row a (world, ablation, parameter) with at least two seeds; columns mean, lo, hi, least, most,
    seeds and ``sign``: positive or negative where the interval excludes 0, else undecided. Scope
    feature: of the mean over latents.
    """
    rows = results[(results["variant"] == SYSTEM) & (results["group"] == "all")]
    found = []
    for name in LEARNED:
        of = rows[rows["metric"] == f"adaptation_{name}"]
        for (world, ablation), here in of.groupby(["world", "ablation"], sort=False):
            values = here["value"].to_numpy(float)
            if len(values) < 2:
                continue
            lo, hi = t_interval(values, level)
            sign = "positive" if lo > 0 else "negative" if hi < 0 else "undecided"
            ends = (values.mean(), lo, hi, values.min(), values.max())
            found.append((world, ablation, name, *ends, len(values), sign))
    columns = ["world", "ablation", "parameter", "mean", "lo", "hi", "least", "most", "seeds"]
    return pd.DataFrame(found, columns=[*columns, "sign"])


def t_interval(values, level: float = 0.95) -> tuple[float, float]:
    """Student t interval of a mean over at least two seeds; a point where all are the same."""
    if (values == values[0]).all():
        return float(values[0]), float(values[0])
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    return float(interval.low), float(interval.high)


def scope_differences(
    documents: pd.DataFrame, n_boot: int = 1000, ablation: str = SCOPE
) -> pd.DataFrame:
    """A law per latent minus one law: paired bootstrap over documents and the shared seeds.

    Metrics ``fvu`` and ``smoothness`` (lower is better) and ``ap`` of document labels,
    against the unchanged run at the same budget. Columns world, metric, diff, lo, hi, seeds.
    """
    rows = documents[documents["variant"] == SYSTEM]
    found = []
    for world, here in rows.groupby("world", sort=False):
        sides = here[here["ablation"] == ablation], unchanged(here)
        for metric, group in COMPARED:
            if (gap := paired(*sides, metric, group, n_boot)) is not None:
                found.append((world, metric, gap.diff, gap.lo, gap.hi, gap.n_seeds))
    return pd.DataFrame(found, columns=["world", "metric", "diff", "lo", "hi", "seeds"])


def position_gaps(documents: pd.DataFrame, n_boot: int = 1000, half: str = HALF) -> pd.DataFrame:
    """FVE beyond the middle of the sequence minus FVE before it, with bootstrap intervals.

    By world and variant, and by ``trained``: ``all`` positions (the unchanged run), the ``first``
    half (ablation ``half``), and ``first - all``, the difference of the two gaps: what not having
    seen the later positions costs there, beyond how hard they are anyway. Documents are drawn, the
    same for all, and seeds, where there are several. Columns world, variant, trained, diff, lo, hi, seeds.
    """
    rows = documents[documents["metric"] == "position_fvu"]
    found = []
    for (world, variant), here in rows.groupby(["world", "variant"], sort=False):
        sides = {"all": unchanged(here), "first": here[here["ablation"] == half]}
        halves = {
            name: [side[side["group"] == f"half={h}"].assign(group="all") for h in HALVES]
            for name, side in sides.items()
        }
        for name, (before, beyond) in halves.items():
            if len(before) and before["den"].sum() and beyond["den"].sum():
                # FVE = 1 - FVU, so that the gap of FVE is FVU before minus FVU beyond.
                seeds = before["seed"].nunique()
                gap = paired_bootstrap(before, beyond, n_boot=n_boot)
                found.append((world, variant, name, gap.diff, gap.lo, gap.hi, seeds))
        parts = [*shared(halves["first"][0], halves["all"][0])]
        parts += [*shared(halves["first"][1], halves["all"][1])]
        if all(len(part) and part["den"].sum() for part in parts):
            first_before, all_before, first_beyond, all_beyond = parts
            seeds = first_before["seed"].nunique()
            gap = paired_bootstrap(
                first_before,
                all_before,
                n_boot=n_boot,
                nulls=(first_beyond, all_beyond),
            )
            found.append((world, variant, "first - all", gap.diff, gap.lo, gap.hi, seeds))
    columns = ["world", "variant", "trained", "diff", "lo", "hi", "seeds"]
    return pd.DataFrame(found, columns=columns)
