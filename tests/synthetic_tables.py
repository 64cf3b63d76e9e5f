"""Made-up tables in the project's schema, for the tests of figures, tables and paper only."""

import numpy as np
import pandas as pd

from lab.results.metrics import verdict

SYSTEMS = {
    "l1": "relu", "topk": "topk", "batchtopk": "batchtopk", "jumprelu": "jumprelu",
    "contrastive": "topk", "conv": "topk", "slowfast": "topk",
    "ema(topk)": "topk", "shuffled(conv)": "topk",
}  # fmt: skip
WORLDS = {"microworld": 2, "smollm2": 12}
SCALES = ("document", "section", "token")
SEEDS = (0, 1, 2)
LABELS = {
    "microworld": ("document:domain", "document:narrator", "section:theme", "token:speech"),
    "smollm2": ("section:section", "token:token"),
}
SLOW = ("conv", "slowfast", "ema(topk)")
FACTS = {
    f"{world}_{key}": value
    for world in WORLDS
    for key, value in {"d_model": 128, "d_sae": 512, "k": 12, "steps": 900, "batch_tokens": 2048,
                       "train_tokens": 1_000_000}.items()
}  # fmt: skip


def row(world, variant, seed, metric, group, value, ablation="", reading="own"):
    keys = dict(world=world, layer=WORLDS[world], variant=variant, act=SYSTEMS[variant], seed=seed)
    rest = dict(ablation=ablation, reading=reading, metric=metric, group=group, n=1000)
    return keys | rest | dict(value=float(value))


def results() -> pd.DataFrame:
    """Every system on both worlds, three seeds, 1% of noise; ablations, sweeps and unlearning."""
    rng, rows = np.random.default_rng(0), []
    for world in WORLDS:
        k = 12 if world == "microworld" else 32
        for place, variant in enumerate(SYSTEMS):
            slow = 1.6 if variant in SLOW else 1.0
            measured = {
                "fve": 0.93 + 0.004 * place, "ce_score": 0.95 + 0.003 * place, "alive": 0.9,
                "smoothness": 0.14 / slow, "smoothness_null": 0.2, "mean_dwell": 1.4 * slow,
                "births_per_100": 400 / slow, "bits": 60 / slow, "births": 4 / slow,
            }  # fmt: skip
            cases = [(name, "all", value, "own") for name, value in measured.items()]
            for scale, f1 in zip(SCALES, (0.4, 0.5, 0.7), strict=True):
                cases.append(("f1", scale, f1 * (1.2 if slow > 1 else 1), "own"))
            for label in () if "(" in variant else LABELS[world]:
                cases += [
                    ("ap", label, 0.3 * slow, "own"), ("ap", label, 0.6, "ema"),
                    ("ap_constant", label, 0.1, "own"), ("ap_probe_ema", label, 0.9, "own"),
                ]  # fmt: skip
            for seed in SEEDS:
                l0 = k * (1.05 if variant == "l1" else 1)
                rows.append(row(world, variant, seed, "l0", "all", l0))
                for name, group, value, reading in cases:
                    value *= 1 + 0.01 * rng.standard_normal()
                    rows.append(row(world, variant, seed, name, group, value, "", reading))
    ablated = {
        "conv": ("window=2", "window=8", "lag_rank=None", "gate='none'"),
        "slowfast": ("k_slow=0", "k_slow=6", "infonce=0"),
    }
    for variant, names in ablated.items():
        for place, name in enumerate(names):
            for metric, group, value in (("l0", "all", 12), ("fve", "all", 0.92 + place / 100),
                                         ("ap", "document:domain", 0.4 + place / 10)):  # fmt: skip
                rows.append(row("microworld", variant, 0, metric, group, value, name))
    for variant in ("topk", "conv"):
        for k, fve in ((6, 0.88), (24, 0.985)):
            rows.append(row("microworld", variant, 0, "l0", "all", k, f"k={k}"))
            rows.append(row("microworld", variant, 0, "fve", "all", fve, f"k={k}"))
    for gate, edit, strength in (("always", "clamp", 1.0), ("ema-residual", "clamp", 0.2),
                                 ("ema-residual", "hold-random", 0.1)):  # fmt: skip
        for m in (25, 50, 100, 200):
            damage = strength * m / 200
            for name, lost in (("forget", 0.9), ("near", 0.6), ("far", 0.05)):
                metric, group = f"unlearn_{name}_accuracy", f"{gate}/{edit}|n=10|m={m}"
                rows += [
                    row("microworld", "topk", s, metric, group, 1 - lost * damage) for s in SEEDS
                ]
        for padding in (25, 100, 400):
            group = f"{gate}/{edit}|attack=dilution|padding={padding}"
            forget = min(1.0, strength * padding / 200)
            rows.append(
                row("microworld", "topk", 0, "unlearn_attack_forget_accuracy", group, forget)
            )
    return pd.DataFrame(rows)


def differences() -> pd.DataFrame:
    """Half a width of 0.03 about made-up differences, against two baselines."""
    gain = {"document": 0.08, "section": 0.01, "token": -0.04}
    rows = []
    for world in WORLDS:
        for variant in SYSTEMS:
            for baseline in ("topk", "ema(topk)"):
                if variant != baseline:
                    at = (world, variant, baseline)
                    rows += [(*at, "f1", scale, diff) for scale, diff in gain.items()]
                    rows.append((*at, "fvu", "all", 0.004))
    table = pd.DataFrame(rows, columns=["world", "variant", "baseline", "metric", "group", "diff"])
    table = table.assign(lo=table["diff"] - 0.03, hi=table["diff"] + 0.03)
    ends = table[["metric", "lo", "hi"]].itertuples(index=False)
    return table.assign(verdict=[verdict(*each) for each in ends])


def curves() -> pd.DataFrame:
    """Held-out FVE that rises; θ and β of glta; one ablation with its base."""
    rows = []
    cases = [(world, v, "") for world in WORLDS for v in ("l1", "topk", "conv", "glta")]
    cases += [("microworld", "conv", name) for name in ("base", "window=1")]
    for place, (world, variant, ablation) in enumerate(cases):
        for seed in SEEDS:
            keys = dict(world=world, variant=variant, act=SYSTEMS.get(variant, "topk"), seed=seed)
            keys |= dict(ablation=ablation, phase="train")
            for step in range(20, 901, 80):
                value = 0.05 + 0.01 * place + np.exp(-step / 100) * (1 + 0.05 * seed)
                logged = {"test_fve": 1 - value}
                logged |= {"theta": value, "beta": -value} if variant == "glta" else {}
                for metric, at in logged.items():
                    rows.append(keys | dict(step=step, metric=metric, value=float(at)))
    return pd.DataFrame(rows)


def heatmap(n_tokens: int = 60) -> pd.DataFrame:
    """Twenty latents that each stay once, with tokens that a figure must not choke on."""
    rng, rows = np.random.default_rng(2), []
    words = "the grey harbour of Mellin_$ lies & sleeps under 50% rain \n while keepers sing".split(
        " "
    )
    for variant in ("topk", "conv"):
        for latent in range(20):
            start, stay = rng.integers(0, n_tokens), rng.integers(1, 12)
            for at in range(start, min(start + stay, n_tokens)):
                level = 3 if at == 0 else 2 if at == 30 else int(at % 11 == 0)
                name = f"domain={latent}" if latent % 2 else ""
                rows.append(("microworld", variant, 4, at + 1, words[at % len(words)], level,
                             latent, name, rng.uniform(0.5, 2)))  # fmt: skip
    columns = "world variant sequence position token boundary latent name value".split()
    return pd.DataFrame(rows, columns=columns)


def dwell() -> pd.DataFrame:
    """Stays that end at a constant rate, a tenth of them cut off."""
    rows = []
    for world in WORLDS:
        for variant in SYSTEMS:
            stay = 0.7 if variant in SLOW else 0.35
            for length in range(1, 100):
                count = int(20_000 * stay**length + 300 / length**2)
                rows.append((world, variant, 0, "", "all", 0, length, count, count // 10))
    columns = "world variant seed ablation group latent dwell count censored".split()
    return pd.DataFrame(rows, columns=columns)


def found() -> dict[str, pd.DataFrame]:
    """All of them, as the last notebook merges them."""
    facts = [(*key.split("_", 1), value) for key, value in FACTS.items()]
    return {
        "results": results(), "differences": differences(), "curves": curves(),
        "heatmap": heatmap(), "dwell": dwell(),
        "facts": pd.DataFrame(facts, columns=["world", "key", "value"]),
    }  # fmt: skip
