"""LaTeX tables of system B: its tracker's settings, the push of chains, interventions and attacks."""

import re
from collections.abc import Mapping

import pandas as pd

from lab.measures.unlearning.attacks import ATTACKS
from lab.paper.figures.strategies import ordered, title
from lab.paper.tables.chains import difference
from lab.paper.tables.latex import cell, escape, floated
from lab.results import tidy
from tsae.errors import UserError

TRACKERS = (
    ("tracker_ap", r"AP by $C$ $\uparrow$"),
    ("tracker_lag_accuracy", "lag right"),
    ("tracker_recall", "recall"),
    ("tracker_mib", "MiB"),
)
KEPT = ("forget", "near", "far")


def main_rows(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of the main runs, if any is of ``metric``; else :class:`UserError`."""
    frame = tidy.main(tidy.prepare(results))
    if not (frame["metric"] == metric).any():
        raise UserError(f"The results hold no '{metric}' rows: run the profile causal.")
    return frame


def by_value(group: str) -> tuple:
    """Sort key: base first, then by what is changed and its number (``tau=0.15`` before 0.3)."""
    name, _, value = group.partition("=")
    number = re.fullmatch(r"[\d.]+", value)
    return group != "base", name, float(value) if number else 0.0, value


def trackers(results: pd.DataFrame, smoke: bool = False) -> str:
    """What C alone tells of the true arrows, a row a setting of the tracker.

    Needs ``tracker_ap`` and the other metrics of the family ``tracking``, group = setting.
    """
    frame = main_rows(results, "tracker_ap")
    groups = frame.loc[frame["metric"] == "tracker_ap", "group"].unique()
    order = sorted(groups, key=by_value)
    body = [" & ".join(["Tracker", *(name for _, name in TRACKERS)]) + r"\\", r"\midrule"]
    for group in order:
        cells = [cell(frame, metric, group) for metric, _ in TRACKERS]
        body.append(" & ".join([escape(group), *cells]) + r"\\")
    chance = cell(frame, "tracker_ap_chance", "base")
    caption = (
        "Pattern detection from the tracker's log-lift $C$ alone (microworld): pairs of steps ranked by "
        f"their largest $C_\\ell$; chance is {chance}. One setting "
        "is changed at a time, and all read the same codes. Lag right: of the true pairs with $C>0$; "
        "recall: the share of true pairs that have one. A window $w$ holds lags up to $w$ only."
    )
    return floated(body, "l" + "r" * len(TRACKERS), caption, "trackers", smoke)


def push(results: pd.DataFrame, smoke: bool = False) -> str:
    """The strategy chain at every β and γ: accuracies and tokens touched.

    Needs ``unlearn_{forget,near,far}_accuracy`` with groups ``chain|…|gamma=…|m=…``; m = 100 β.
    """
    frame = main_rows(results, "unlearn_forget_accuracy")
    rows = frame[frame["group"].str.startswith("chain|") & frame["group"].str.contains("gamma=")]
    settings = rows["group"].str.extract(r"gamma=(?P<gamma>[\d.]+)\|m=(?P<m>[\d.]+)$")
    rows = rows.assign(
        gamma=settings["gamma"].astype(float), beta=settings["m"].astype(float) / 100
    )
    body = [
        r"$\beta$ & $\gamma$ & " + " & ".join(f"{name} acc." for name in KEPT) + r" & touched\\",
        r"\midrule",
    ]
    metrics = [*(f"unlearn_{name}_accuracy" for name in KEPT), "unlearn_touched"]
    for (beta, gamma), mine in rows.groupby(["beta", "gamma"]):
        cells = [cell(mine.assign(group="all"), metric) for metric in metrics]
        body.append(" & ".join([f"{beta:g}", f"{gamma:g}", *cells]) + r"\\")
    caption = (
        "The intervention \\textit{chain} by push $\\beta$ and its decay a token $\\gamma$ "
        "(microworld, TopK): share of the clean model's right answers that is left, and share of "
        "held-out tokens edited."
    )
    return floated(body, "rrrrrr", caption, "push", smoke, star=False)


def interventions(results: pd.DataFrame, smoke: bool = False) -> str:
    """Every strategy beside clamp, with intervals, and forget accuracy under attack.

    Needs ``unlearn_chosen_…_accuracy`` and ``unlearn_difference…`` (group = strategy), and
    ``unlearn_attack_forget_accuracy`` with groups ``setting|attack=…``.
    """
    frame = main_rows(results, "unlearn_attack_forget_accuracy")
    attacked = frame[frame["metric"] == "unlearn_attack_forget_accuracy"].copy()
    parts = attacked["group"].str.rsplit("|attack=", n=1)
    attacked["setting"], attacked["attack"] = parts.str[0], parts.str[1]
    chosen = frame[frame["metric"] == "unlearn_chosen_forget_accuracy"]
    span = len(ATTACKS) + 1
    body = [
        rf"& \multicolumn{{3}}{{c}}{{settings picked on other facts}} & \multicolumn{{3}}{{c}}"
        rf"{{difference to clamp}} & \multicolumn{{{span}}}{{c}}{{forget acc., best setting}}\\",
        " & ".join(["Strategy", *KEPT, *KEPT, "plain", *ATTACKS]) + r"\\",
        r"\midrule",
    ]
    for strategy in ordered(chosen["group"]):
        cells = [cell(frame, f"unlearn_chosen_{name}_accuracy", strategy) for name in KEPT]
        cells += [difference(frame, f"{strategy}|{name}") for name in KEPT]
        mine = attacked[attacked["setting"].str.split("|").str[0] == strategy]
        setting = mine["setting"].iloc[0] if len(mine) else ""
        cells.append(cell(frame, "unlearn_forget_accuracy", setting))
        for attack in ATTACKS:
            here = mine[mine["attack"] == attack].assign(group="all")
            cells.append(cell(here, "unlearn_attack_forget_accuracy"))
        body.append(" & ".join([escape(title(strategy)), *cells]) + r"\\")
    caption = (
        "Interventions beside clamping (microworld, TopK). Left: settings picked on one half of the "
        "facts (lowest forget accuracy with near $\\ge.95$ and far $\\ge.99$; none: no edit) and "
        "judged on the other; paired differences with 95\\% bootstrap intervals over facts, bold where "
        "they exclude 0. Right: each strategy's best setting over all facts, plainly and under attacks."
    )
    return floated(body, "l" + "r" * (6 + span), caption, "interventions", smoke)


def made(found: Mapping[str, pd.DataFrame], smoke: bool) -> dict[str, str]:
    """Every table of this file that the tables allow."""
    results = found.get("results")
    if results is None or results.empty:
        return {}
    out, metrics = {}, set(results["metric"])
    if "tracker_ap" in metrics:
        out["trackers"] = trackers(results, smoke)
    chains = results[results["metric"] == "unlearn_forget_accuracy"]["group"]
    if chains.str.contains("gamma=").any():
        out["push"] = push(results, smoke)
    if "unlearn_attack_forget_accuracy" in metrics:
        out["interventions"] = interventions(results, smoke)
    return out
