"""What temporal adaptation has learned: its numbers, and what becomes of codes at others."""

import copy
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, Tokens, latent_groups, row
from lab.measures.time.temporal import Temporal
from lab.measures.truth.codes import Codes, variables
from lab.measures.truth.ranking import AP
from lab.worlds import World
from tsae.sequences import SCALES

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GRIDS = {
    "theta": (-1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0),
    "beta": (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0),
    "tau": (0.0, 0.25, 0.5, 1.0, 1.5),
}


@register("adaptation", together=True)
def measure(
    saes: Mapping[str, Encoder],
    reading: Reading,
    world: World | None,
    *,
    sensitivity_tokens: int = 4096,
    sensitivity_seeds: int = 1,
    sensitivity_ablations: tuple[str, ...] = ("",),
    grids: Mapping[str, tuple[float, ...]] = GRIDS,
) -> dict[str, Measured]:
    r"""Of every SAE that adapts (has ``adaptation()``); the others, and nulls, are left out.

    - ``adaptation_beta``, ``adaptation_theta``, ``adaptation_tau``: as learned; group all = mean
      over latents, and for scope feature also group ``sd`` of beta and theta
    - ``adaptation_delta``, ``adaptation_strength``, ``adaptation_half_life``: delta_i, theta_i and
      ln ½ / ln delta_i (tokens) of each latent; groups mean, sd and ``q=0.05`` … ``q=0.95``

    Table ``adaptation``: latent, variance, scale (s_i), delta, theta. Table ``sensitivity``
    (parameter, setting, metric, value, learned): see :func:`responses`; of global runs, the first
    ``sensitivity_seeds`` of each act whose ablation is in ``sensitivity_ablations``.
    """
    found: dict[str, Measured] = {}
    shown: dict[tuple[str, str], int] = {}
    adapting: dict[str, Any] = {n: s for n, s in saes.items() if hasattr(s, "adaptation")}
    for name, sae in adapting.items():
        tables = {"adaptation": per_latent(sae)}
        found[name] = Measured(numbers(sae), None, tables)
        case = (sae.cfg.act, sae.meta.get("ablation", ""))
        shown[case] = shown.get(case, 0) + 1
        wanted = case[1] in sensitivity_ablations and shown[case] <= sensitivity_seeds
        if not wanted or sae.cfg.scope != "global":
            continue
        tables["sensitivity"] = responses(sae, reading, sensitivity_tokens, grids)
    return found


# ---- what was learned ---------------------------------------------------------------------


@torch.no_grad()
def per_latent(sae: Any) -> pd.DataFrame:
    """latent, variance (of relu(pre), running mean), scale s_i, delta, theta."""
    delta_F, theta_F = sae.adaptation()
    columns = {"variance": sae.var_F, "scale": sae.scale(), "delta": delta_F, "theta": theta_F}
    frame = pd.DataFrame({name: c.detach().cpu().numpy() for name, c in columns.items()})
    return frame.rename_axis("latent").reset_index()


@torch.no_grad()
def numbers(sae: Any) -> list[dict[str, Any]]:
    """The rows of :func:`measure` about one SAE by itself."""
    rows = []
    for name in ("beta", "theta", "tau"):
        value = getattr(sae, name).double()
        rows.append(row(f"adaptation_{name}", "all", value.mean(), value.numel()))
        if value.numel() > 1:
            rows.append(row(f"adaptation_{name}", "sd", value.std(), value.numel()))
    delta_F, theta_F = (part.double() for part in sae.adaptation())
    # delta = 1 would be a memory without end, delta = 0 none at all: half-life infinite, and 0.
    half_life_F = -torch.tensor(2.0, dtype=torch.float64).log() / delta_F.log()
    spreads = {"delta": delta_F, "strength": theta_F, "half_life": half_life_F}
    for name, value_F in spreads.items():
        cases = {"mean": value_F.mean(), "sd": value_F.std()}
        cases |= {f"q={q}": value_F.quantile(q) for q in QUANTILES}
        rows += [row(f"adaptation_{name}", g, v, len(value_F)) for g, v in cases.items()]
    return rows


# ---- sensitivity --------------------------------------------------------------------------


@torch.no_grad()
def responses(
    sae: Any, reading: Reading, n_tokens: int, grids: Mapping[str, tuple[float, ...]]
) -> pd.DataFrame:
    """Response curves of one parameter at a time.

    beta, theta or tau is set to each value of its grid, and to the learned one (``learned`` True),
    at inference: the weights stay as they were trained, the other two as they were learned. Metrics
    on ``n_tokens`` test tokens: ``fve``; ``l0`` (fixed by construction under topk); ``smoothness``
    of :class:`lab.measures.time.temporal.Temporal`; ``turnover`` = share of the active latents that
    the learned setting would not have active at that token; ``ap_document`` … ``ap_token``, mean
    average precision of the latents chosen at the learned setting, where the store has labels.
    """
    learned = {name: float(getattr(sae, name)) for name in ("theta", "beta", "tau")}
    specs, moved = reading.store.label_specs, copy.deepcopy(sae)
    batches = list(reading.batches("test", n_tokens))
    x_ND = torch.cat([b.x_BTD[b.context.mask_BT.bool()] for b in batches]).double()
    total = float((x_ND - x_ND.mean(0)).square().sum())

    def encoded(of: Any) -> list[Tokens]:
        outs = ((batch, of(batch.x_BTD, batch.context)) for batch in batches)
        return [Tokens.of(batch, out.z, out.x_hat) for batch, out in outs]

    def fve(tokens: list[Tokens]) -> float:
        sse = sum(float((t.x_ND - t.x_hat_ND).double().square().sum()) for t in tokens)
        return 1 - sse / total

    reference, latent_C = encoded(sae), None
    if specs:
        latent_C = Codes(specs, reading.tokens(sae, reading.choices)).scores()[:, AP].argmax(0)

    def scores(tokens: list[Tokens]) -> dict[str, float]:
        active = sum(int((t.z_NF > 0).sum()) for t in tokens)
        pairs = zip(tokens, reference, strict=True)
        both = sum(int(((t.z_NF > 0) & (r.z_NF > 0)).sum()) for t, r in pairs)
        out = {"fve": fve(tokens), "l0": active / len(x_ND), "turnover": 1 - both / max(active, 1)}
        groups = latent_groups(sae, sae.cfg.d_sae, reading.device)
        temporal = Temporal({"all": groups["all"]}, reading.store.seq_len)
        for t in tokens:
            temporal.update(t)
        rows = {(r["metric"], r["group"]): r["value"] for r in temporal.rows()}
        out["smoothness"] = rows["smoothness", "all"]
        if latent_C is None:
            return out
        codes = Codes(specs, tokens)
        ap_C = codes.scores()[latent_C, AP, range(len(latent_C))]
        for scale in SCALES:
            at = [c for c, v in enumerate(variables(specs)) if v.scale == scale and codes.n_C[c]]
            if at:
                out[f"ap_{scale}"] = float(ap_C[at].mean())
        return out

    curves = []
    for name, grid in grids.items():
        for setting in sorted({*grid, learned[name]}):
            moved.set_adaptation(**{**learned, name: setting})
            is_learned = setting == learned[name]
            found = scores(encoded(moved)).items()
            curves += [(name, setting, m, value, is_learned) for m, value in found]
    return pd.DataFrame(curves, columns=["parameter", "setting", "metric", "value", "learned"])
