"""Tables of system B from made-up rows."""

import pandas as pd

from lab.paper.tables import causal

KEYS = {"world": "microworld", "layer": 2, "variant": "topk", "act": "topk", "seed": 0}


def rows(*given):
    made = [{"metric": m, "group": g, "value": v, "n": 40} for m, g, v in given]
    return pd.DataFrame(made).assign(**KEYS, ablation="")


def unlearning():
    found = []
    for group, forget in (("clamp|n=20|m=100", 0.9), ("chain|n=20|gamma=0.5|m=400", 0.7)):
        found += [(f"unlearn_{name}_accuracy", group, forget) for name in ("forget", "near", "far")]
        found += [("unlearn_touched", group, 0.25)]
        found += [
            ("unlearn_attack_forget_accuracy", f"{group}|attack={a}", v)
            for a, v in (("dilution", 0.95), ("split", 0.5), ("paraphrase", 0.8))
        ]
    for strategy, value in (("clamp", 1.0), ("chain", 0.6)):
        found += [
            (f"unlearn_chosen_{n}_accuracy", strategy, value) for n in ("forget", "near", "far")
        ]
    for name, (diff, low, high) in {
        "forget": (-0.4, -0.5, -0.3),
        "near": (0.0, -0.1, 0.1),
    }.items():
        for suffix, value in (("", diff), ("_lo", low), ("_hi", high)):
            found.append((f"unlearn_difference{suffix}", f"chain|{name}", value))
    return rows(*found)


def line(table, head):
    return next(row for row in table.splitlines() if row.startswith(head))


def test_trackers_are_listed_after_the_base_in_natural_order():
    found = rows(
        ("tracker_ap", "window=12", 0.3), ("tracker_ap", "window=2", 0.2),
        ("tracker_ap", "tau=0.3", 0.2), ("tracker_ap", "tau=0.15", 0.2),
        ("tracker_ap", "base", 0.25), ("tracker_mib", "base", 1.5),
        ("tracker_ap_chance", "base", 0.02),
    )  # fmt: skip
    table = causal.made({"results": found}, False)["trackers"]
    order = [
        table.index(name) for name in ("base &", "tau=0.15", "tau=0.3", "window=2 &", "window=12 &")
    ]
    assert order == sorted(order)
    assert line(table, "base") == r"base & 0.250 & -- & -- & -- & -- & 1.500\\"
    assert "chance is 0.020" in table


def test_push_and_interventions_show_settings_intervals_and_attacks():
    made = causal.made({"results": unlearning()}, False)
    assert line(made["push"], "4 &") == r"4 & 0.5 & 0.700 & 0.700 & 0.700 & 0.250\\"
    chain = line(made["interventions"], "chain")
    assert r"\textbf{\textminus 0.40 [\textminus 0.50, \textminus 0.30]}" in chain
    assert "+0.00 [\\textminus 0.10, 0.10]" in chain
    assert chain.endswith(r"0.700 & 0.950 & 0.500 & 0.800\\")
    assert line(made["interventions"], "clamp").count("--") == 3  # no difference to itself
    assert causal.made({"results": rows(("fve", "all", 0.9))}, False) == {}
