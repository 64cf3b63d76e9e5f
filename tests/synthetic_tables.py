"""Made-up tables in the project's schema, for the tests of figures, tables and paper only."""

import numpy as np
import pandas as pd

SYSTEMS = {
    "l1": "relu",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "jumprelu": "jumprelu",
    "contrastive": "topk",
    "conv": "topk",
    "ema(topk)": "topk",
    "shuffled(conv)": "topk",
}
WORLDS = {"microworld": 2, "smollm2": 12}
SCALES = ("document", "section", "token")
SEEDS = (0, 1, 2)
LABELS = {"document": "domain", "section": "theme", "token": "speech"}


def row(world, variant, seed, metric, group, value, ablation=""):
    keys = dict(world=world, layer=WORLDS[world], variant=variant, act=SYSTEMS[variant])
    return keys | dict(
        seed=seed, ablation=ablation, metric=metric, group=group, value=float(value), n=1000
    )


def results() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for world in WORLDS:
        k = 12 if world == "microworld" else 32
        for place, variant in enumerate(SYSTEMS):
            for seed in SEEDS:

                def add(metric, value, group="all", at=(world, variant, seed)):
                    value = value * (1 + 0.01 * rng.standard_normal())
                    rows.append(row(*at, metric, group, value))

                slow = 1.6 if "conv" in variant or "ema" in variant else 1.0
                rows.append(
                    row(world, variant, seed, "l0", "all", k * (1.05 if variant == "l1" else 1))
                )
                add("fve", 0.93 + 0.004 * place)
                add("ce_score", 0.95 + 0.003 * place)
                add("kl_score", 0.94 + 0.003 * place)
                add("alive", 0.9)
                add("smoothness", 0.14 / slow)
                add("smoothness_null", 0.2)
                add("mean_dwell", 1.4 * slow)
                add("births_per_100", 400 / slow)
                add("boundary_f1", 0.6)
                add("boundary_f1_null", 0.2)
                if variant == "conv":
                    for group, factor in (("fast", 1.2), ("sentence", 0.8), ("document", 0.4)):
                        add("smoothness", 0.09 * factor, group)
                        add("mean_dwell", 2 / factor, group)
                for scale, f1 in zip(SCALES, (0.4, 0.5, 0.7), strict=True):
                    add("recovery_f1", f1 * (1.2 if variant == "conv" else 1), scale)
                    add("recovery_f1_matched", 0.2, scale)
                    add("mcc", f1, scale)
    for ablation in ("window=2", "window=8", "lag_rank=None", "gate='none'", "consistency='l2'"):
        rows += [
            row("microworld", "conv", 0, metric, group, value, ablation)
            for metric, group, value in (
                ("l0", "all", 12),
                ("fve", "all", rng.uniform(0.92, 0.96)),
                ("recovery_f1", "document", rng.uniform(0.4, 0.5)),
                ("smoothness", "all", rng.uniform(0.08, 0.12)),
                ("mean_dwell", "all", rng.uniform(1.8, 2.6)),
            )
        ]
    for variant in ("topk", "conv"):
        for k, fve in ((6, 0.88), (24, 0.985)):
            rows.append(row("microworld", variant, 0, "l0", "all", k, f"k={k}"))
            rows.append(row("microworld", variant, 0, "fve", "all", fve, f"k={k}"))
        for strategy, strength in (("clamp", 1.0), ("random", 0.1)):
            for n in (10, 20):
                for m in (25, 50, 100, 200):
                    damage = strength * m * n / 4000
                    for name, value in (
                        ("forget", max(0.05, 1 - 2 * damage)),
                        ("near", 1 - 0.6 * damage),
                        ("far", 1 - 0.05 * damage),
                    ):
                        metric, group = f"unlearn_{name}_accuracy", f"{strategy}|n={n}|m={m}"
                        rows += [row("microworld", variant, s, metric, group, value) for s in SEEDS]
    return pd.DataFrame(rows)


def documents(n_documents: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for world in WORLDS:
        for variant in SYSTEMS:
            for seed in SEEDS:
                for scale, f1 in zip(SCALES, (0.4, 0.5, 0.7), strict=True):
                    f1 *= 1.2 if variant == "conv" else 1
                    for cls in "ab":
                        den = rng.integers(20, 60, n_documents)
                        num = 2 * (np.clip(f1 + 0.1 * rng.standard_normal(n_documents), 0, 1) * den)
                        for doc in range(n_documents):
                            rows.append(
                                dict(
                                    world=world,
                                    layer=WORLDS[world],
                                    variant=variant,
                                    act=SYSTEMS[variant],
                                    seed=seed,
                                    ablation="",
                                    metric="recovery_f1",
                                    group=f"{scale}:{LABELS[scale]}={cls}",
                                    doc=doc,
                                    num=num[doc] / 2,
                                    den=float(den[doc]),
                                )
                            )
    return pd.DataFrame(rows)


def differences() -> pd.DataFrame:
    rows = []
    for world in WORLDS:
        for variant in SYSTEMS:
            for baseline in ("topk", "ema(topk)", "shuffled(conv)"):
                if variant == baseline:
                    continue
                gain = {"document": 0.08, "section": 0.01, "token": -0.04}
                for scale, diff in gain.items():
                    rows.append((world, variant, baseline, "recovery_f1", scale, diff))
                    rows.append((world, variant, baseline, "recovery_f1_excess", scale, diff))
                rows.append((world, variant, baseline, "fvu", "all", 0.004))
    table = pd.DataFrame(rows, columns=["world", "variant", "baseline", "metric", "group", "diff"])
    return table.assign(lo=table["diff"] - 0.03, hi=table["diff"] + 0.03)


def curves() -> pd.DataFrame:
    rows = []
    for world in WORLDS:
        for place, (variant, act) in enumerate(list(SYSTEMS.items())[:5]):
            for seed in SEEDS:
                for step in range(20, 901, 20):
                    value = 0.05 + 0.01 * place + np.exp(-step / 100) * (1 + 0.05 * seed)
                    keys = dict(world=world, variant=variant, act=act, seed=seed, ablation="")
                    for metric, at in (("mse", value), ("test_fve", 1 - value)):
                        rows.append(
                            keys | dict(step=step, phase="train", metric=metric, value=float(at))
                        )
    return pd.DataFrame(rows)


def heatmap(n_tokens: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    words = "the grey harbour of Mellin_$ lies & sleeps under 50% rain \n while keepers sing".split(
        " "
    )
    rows = []
    for world in WORLDS:
        for variant in ("topk", "conv"):
            for latent in range(20):
                start = rng.integers(0, n_tokens)
                stay = rng.integers(1, 4) if variant == "topk" else rng.integers(4, 20)
                for position in range(start, min(start + stay, n_tokens)):
                    level = 3 if position == 0 else 2 if position == 30 else position % 11 == 0
                    rows.append(
                        dict(
                            world=world,
                            variant=variant,
                            sequence=4,
                            position=position + 1,
                            token=words[position % len(words)],
                            boundary=int(level),
                            latent=latent,
                            name=f"domain={latent}" if latent % 2 else "",
                            value=rng.uniform(0.5, 2),
                        )
                    )
    return pd.DataFrame(rows)


def dwell() -> pd.DataFrame:
    rows = []
    for world in WORLDS:
        for variant in SYSTEMS:
            for seed in SEEDS:
                stay = 0.7 if "conv" in variant or "ema" in variant else 0.35
                for length in range(1, 100):
                    count = int(20_000 * stay**length * (1 + 0.1 * seed) + 300 / length**2)
                    keys = dict(world=world, variant=variant, seed=seed, group="all", latent=0)
                    rows.append(keys | dict(dwell=length, count=count, censored=count // 10))
    return pd.DataFrame(rows)


FACTS = {
    f"{world}_{key}": value
    for world in WORLDS
    for key, value in {
        "d_model": 128,
        "d_sae": 512,
        "k": 12,
        "steps": 900,
        "batch_tokens": 2048,
        "train_tokens": 1_000_000,
    }.items()
}
