"""Ground truth: which latents stand for which known binary variable, and how well."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lab.measures.families import register
from lab.measures.reading import Encoder, Measured, Reading, Tokens, row
from lab.measures.time.lifecycle import LifecycleTracker
from lab.worlds import World
from tsae.sequences import SCALES

QUANTILES = (0.25, 0.5, 0.75, 0.9)
DOCUMENT_KINDS = {"plain": "recovery_f1", "matched": "recovery_f1_matched"}


@register("recovery", nulls=True, needs=("labels",))
def measure(
    saes: Mapping[str, Encoder], reading: Reading, world: World | None
) -> dict[str, Measured]:
    """:class:`Recovery`, chosen on the split for choices; table ``latents``: group, latent."""
    found = {}
    for name, sae in saes.items():
        store = reading.store
        part = Recovery(store.label_specs, max_length=store.seq_len, seed=reading.seed)
        for t in reading.tokens(sae, reading.choices):
            part.select(t)
        for t in reading.tokens(sae, "test"):
            part.update(t)
        best = pd.DataFrame(part.best_latents().items(), columns=["group", "latent"])
        found[name] = Measured(part.rows(), part.document_rows(), {"latents": best})
    return found


class Recovery:
    r"""Best single latent per true variable, chosen on some documents and scored on others.

    The C true variables are the (label, class) pairs, one against the rest, over all valid tokens;
    where a label does not apply (−1) its variables are off. ``select`` takes selection documents
    (training split), then ``update`` takes test documents. Per variable c:

    - F1 = 2 tp / (active + true) of "latent i is active" (z_i > 0); i is the best on the selection
      documents; ``recovery_f1``, ``recovery_precision``, ``recovery_recall`` on the test documents.
    - ``recovery_f1_tuned``: i and a threshold chosen together, among 0 and the quartiles and ninth
      decile of z_i's positive values (measured on the first ``calibration`` selection tokens).
    - ``recovery_f1_matched``: the null; the variables are shifted circularly against the codes by a
      random offset a batch, then chosen and scored the same way: what frequency alone gives (a
      latent that is always on has F1 = 2p / (1 + p) for a variable of frequency p).
      ``recovery_f1_excess`` = recovery_f1 − recovery_f1_matched.
    - ``mcc``: latents and variables are paired one to one by Hungarian matching of |Pearson r| on
      the selection documents; mean of r on the test documents, with the selection's sign.
    - ``lifetime_error`` = mean |log2(dwell of latent i / dwell of c)|, restricted mean dwell times.

    Groups: a scale (mean over its variables, n = how many), and ``scale:label=class`` (n = true
    test tokens). Variables with fewer than ``min_count`` true tokens, or true everywhere, in either
    part are left out for every SAE alike; ``recovery_classes`` counts the rest.
    Invariant to permuting latents and to scaling each by a positive number.

    ``max_length``: the longest piece in tokens (the store's sequence length).
    Raises ValueError when there are no labels, or when scoring starts before selection.
    """

    def __init__(
        self,
        label_specs: Mapping[str, Any],
        *,
        min_count: int = 20,
        calibration: int = 4096,
        max_length: int = 128,
        seed: int = 0,
    ):
        self.variables = [
            (spec.scale, name, cls) for name, spec in label_specs.items() for cls in spec.classes
        ]
        if not self.variables:
            raise ValueError("the store has no labels, so recovery cannot be measured")
        self.specs = dict(label_specs)
        self.min_count, self.calibration, self.max_length = min_count, calibration, max_length
        self.generator = torch.Generator().manual_seed(seed)
        self.pending: list[Tokens] = []
        self.threshold_QF: Tensor | None = None
        self.chosen: dict[str, tuple[Tensor, Tensor]] | None = None
        self.selected_n = self.n = 0
        self.documents: list[tuple[Tensor, Tensor]] = []

    def true_variables(self, t: Tokens) -> Tensor:
        """[N, C] float 0/1 in the order of ``variables``."""
        parts = []
        for name, spec in self.specs.items():
            label_N = t.labels[name].long()
            parts.append(label_N[:, None] == torch.arange(len(spec.classes), device=label_N.device))
        return torch.cat(parts, 1).float()

    def _shifted(self, y_NC: Tensor) -> Tensor:
        return y_NC.roll(int(torch.randint(len(y_NC), (1,), generator=self.generator)), 0)

    # ---- choosing -------------------------------------------------------------------------

    def select(self, t: Tokens) -> None:
        """Take in selection documents. Raises ValueError once scoring has begun."""
        if self.chosen is not None:
            raise ValueError("selection documents came after scoring began")
        if not len(t):
            return
        if self.threshold_QF is None:
            self.pending.append(t)
            if sum(map(len, self.pending)) >= self.calibration:
                self._calibrate()
        else:
            self._count(t)

    def _calibrate(self) -> None:
        z_NF = torch.cat([t.z_NF for t in self.pending])[: self.calibration]
        n, f = z_NF.shape
        c = len(self.variables)
        ascending_NF = z_NF.sort(0).values
        positive_F = (z_NF > 0).sum(0)
        levels = [torch.zeros(f, device=z_NF.device)]
        for q in QUANTILES:
            at_F = n - positive_F + (q * positive_F).long()
            value_F = ascending_NF.gather(0, at_F.clamp(max=n - 1)[None]).squeeze(0)
            levels.append(torch.where(positive_F > 0, value_F, 0.0))
        self.threshold_QF = torch.stack(levels)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=z_NF.device)

        self.tp_QFC, self.active_QF = zeros(len(levels), f, c), zeros(len(levels), f)
        self.true_C = zeros(c)
        self.null_tp_FC, self.moment_FC = zeros(f, c), zeros(f, c)
        self.sum_F, self.square_F = zeros(f), zeros(f)
        self.tp_C3 = {kind: zeros(c, 3) for kind in ("plain", "tuned", "matched")}
        self.pair_C4 = zeros(c, 4)  # Σz, Σz², Σzy, Σy of the matched pairs on test documents
        self.lives = {
            kind: LifecycleTracker(c, self.max_length, device=z_NF.device)
            for kind in ("latent", "true")
        }
        for t in self.pending:
            self._count(t)
        self.pending = []

    def _count(self, t: Tokens) -> None:
        y_NC, z_NF = self.true_variables(t), t.z_NF.float()
        assert self.threshold_QF is not None
        for q, threshold_F in enumerate(self.threshold_QF):
            active_NF = (z_NF > threshold_F).float()
            self.tp_QFC[q] += active_NF.T @ y_NC
            self.active_QF[q] += active_NF.sum(0)
        self.null_tp_FC += (z_NF > 0).float().T @ self._shifted(y_NC)
        self.moment_FC += z_NF.T @ y_NC
        self.sum_F += z_NF.sum(0)
        self.square_F += z_NF.square().sum(0)
        self.true_C += y_NC.sum(0)
        self.selected_n += len(t)

    def _choose(self) -> None:
        if self.pending:
            self._calibrate()
        if self.threshold_QF is None:
            raise ValueError("no selection documents: call select before update")
        threshold_QF = self.threshold_QF

        def best(tp_QFC: Tensor, active_QF: Tensor) -> tuple[Tensor, Tensor]:
            f1_QFC = 2 * tp_QFC / (active_QF[..., None] + self.true_C).clamp(min=1)
            flat = f1_QFC.flatten(0, 1).argmax(0)
            q, latent_C = flat // f1_QFC.shape[1], flat % f1_QFC.shape[1]
            return latent_C, threshold_QF[q, latent_C]

        self.chosen = {
            "plain": best(self.tp_QFC[:1], self.active_QF[:1]),
            "tuned": best(self.tp_QFC, self.active_QF),
            "matched": best(self.null_tp_FC[None], self.active_QF[:1]),
        }
        sums = self.sum_F[:, None], self.square_F[:, None], self.moment_FC, self.true_C
        r_FC = pearson(*sums, self.selected_n)
        latent, variable = linear_sum_assignment(-r_FC.abs().cpu().numpy())
        self.pair_latent = torch.as_tensor(latent, device=r_FC.device)
        self.pair_variable = torch.as_tensor(variable, device=r_FC.device)
        self.pair_sign = r_FC[self.pair_latent, self.pair_variable].sign()
        self.test_true_C = torch.zeros_like(self.true_C)

    # ---- scoring --------------------------------------------------------------------------

    def update(self, t: Tokens) -> None:
        """Take in test documents; the first call fixes the choices made from the selection."""
        if self.chosen is None:
            self._choose()
        assert self.chosen is not None
        if not len(t):
            return
        y_NC = self.true_variables(t)
        self.test_true_C += y_NC.sum(0)
        self.n += len(t)
        doc, index = torch.unique(t.doc_N, return_inverse=True)
        per_doc = []
        for kind, (latent_C, threshold_C) in self.chosen.items():
            active_NC = (t.z_NF[:, latent_C] > threshold_C).float()
            true_NC = self._shifted(y_NC) if kind == "matched" else y_NC
            counts_NC3 = torch.stack([active_NC * true_NC, active_NC, true_NC], -1)
            self.tp_C3[kind] += counts_NC3.sum(0)
            if kind in DOCUMENT_KINDS:
                zeros = torch.zeros(len(doc), *counts_NC3.shape[1:], device=y_NC.device)
                per_doc.append(zeros.index_add_(0, index, counts_NC3))
            if kind == "plain":
                self.lives["latent"].update(active_NC > 0, t.piece_N)
        self.lives["true"].update(y_NC > 0, t.piece_N)
        self.documents.append((doc.cpu(), torch.stack(per_doc).cpu()))
        z, y = t.z_NF[:, self.pair_latent].double(), y_NC[:, self.pair_variable].double()
        sums = torch.stack([z.sum(0), z.square().sum(0), (z * y).sum(0), y.sum(0)], 1)
        self.pair_C4[: len(sums)] += sums

    def scored(self) -> Tensor:
        """[C] bool: variables with enough cases in both parts; depends on the data alone."""
        ok = (self.true_C >= self.min_count) & (self.test_true_C >= self.min_count)
        return ok & (self.true_C < self.selected_n) & (self.test_true_C < self.n)

    def rows(self) -> list[dict[str, Any]]:
        if self.n == 0:
            raise ValueError("no test document was scored; ask for more tokens")
        keep = self.scored().cpu()
        per_class = {"recovery_f1": _f1(self.tp_C3["plain"])}
        tp, active, true = self.tp_C3["plain"].unbind(-1)
        per_class["recovery_precision"] = tp / active.clamp(min=1)
        per_class["recovery_recall"] = tp / true.clamp(min=1)
        per_class["recovery_f1_tuned"] = _f1(self.tp_C3["tuned"])
        per_class["recovery_f1_matched"] = _f1(self.tp_C3["matched"])
        excess = per_class["recovery_f1"] - per_class["recovery_f1_matched"]
        per_class["recovery_f1_excess"] = excess
        per_class["lifetime_error"] = self._lifetime_error()
        per_class["mcc"] = self._matched_correlation()
        rows = []
        for scale in SCALES:
            of_scale = torch.tensor([v[0] == scale for v in self.variables]) & keep
            n = int(of_scale.sum())
            if n:
                rows.append(row("recovery_classes", scale, n, n))
                rows += [
                    row(m, scale, v.cpu()[of_scale].nanmean(), n) for m, v in per_class.items()
                ]
        mcc = per_class["mcc"].cpu()[keep]
        rows.append(row("mcc", "all", mcc.mean() if len(mcc) else float("nan"), len(mcc)))
        for metric in ("recovery_f1", "recovery_f1_tuned"):
            for c in keep.nonzero().squeeze(1).tolist():
                value, cases = per_class[metric][c], self.test_true_C[c]
                rows.append(row(metric, self.group(c), value, cases))
        return rows

    def group(self, c: int) -> str:
        scale, label, cls = self.variables[c]
        return f"{scale}:{label}={cls}"

    def best_latents(self) -> dict[str, int]:
        """``scale:label=class`` → the latent that was chosen for it (threshold 0)."""
        assert self.chosen is not None
        latent_C = self.chosen["plain"][0]
        return {self.group(c): int(latent_C[c]) for c in self.scored().nonzero().squeeze(1)}

    def _matched_correlation(self) -> Tensor:
        n_pairs = len(self.pair_latent)
        z, z2, zy, y = self.pair_C4[:n_pairs].unbind(1)
        r_C = torch.zeros_like(self.true_C)  # a variable left without a latent counts as 0
        r_C[self.pair_variable] = pearson(z, z2, zy, y, self.n) * self.pair_sign
        return r_C

    def _lifetime_error(self) -> Tensor:
        error = []
        for c in range(len(self.variables)):
            one = torch.tensor([c])
            dwell = {kind: life.mean_dwell(one) for kind, life in self.lives.items()}
            seen = all(life.runs_seen(one) for life in self.lives.values())
            ratio = dwell["latent"] / dwell["true"] if seen else float("nan")
            error.append(abs(float(torch.tensor(ratio).log2())))
        return torch.tensor(error, dtype=torch.float64)

    def document_rows(self) -> pd.DataFrame:
        """num = 2 tp, den = 2 tp + fp + fn per test document and variable (rows with den > 0).

        Metrics ``recovery_f1`` and ``recovery_f1_matched``, group ``scale:label=class``.
        """
        keep = self.scored().cpu()
        groups = pd.Series([self.group(c) for c in range(len(self.variables))])
        doc, index = torch.unique(torch.cat([d for d, _ in self.documents]), return_inverse=True)
        counts = torch.cat([k for _, k in self.documents], 1).double()
        frames = []
        for kind, metric in enumerate(DOCUMENT_KINDS.values()):
            total = torch.zeros(len(doc), *counts.shape[2:], dtype=torch.float64)
            total.index_add_(0, index, counts[kind])
            den = (total[..., 1] + total[..., 2]) * keep
            d, c = den.nonzero(as_tuple=True)
            frames.append(
                pd.DataFrame(
                    {
                        "doc": doc[d].numpy(),
                        "metric": metric,
                        "group": groups.iloc[c.numpy()].to_numpy(),
                        "num": 2 * total[d, c, 0].numpy(),
                        "den": den[d, c].numpy(),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)


def pearson(z: Tensor, z2: Tensor, zy: Tensor, y: Tensor, n: int) -> Tensor:
    """Pearson r from the sums Σz, Σz², Σzy, Σy of n cases with y ∈ {0, 1}; 0 where undefined."""
    covariance = n * zy - z * y
    z_spread, y_spread = n * z2 - z.square(), n * y - y.square()
    # relative, so that neither scale nor rounding turns a constant into a correlation
    defined = (z_spread > 1e-7 * n * z2) & (y_spread > 0)
    spread = torch.where(defined, z_spread * y_spread, 1.0)
    return torch.where(defined, covariance / spread.sqrt(), 0.0)


def _f1(counts_C3: Tensor) -> Tensor:
    tp, active, true = counts_C3.unbind(-1)
    return 2 * tp / (active + true).clamp(min=1)
