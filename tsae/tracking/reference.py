"""The counts of :mod:`tsae.tracking.correlation` as they are defined, for small dictionaries."""

import torch
from torch import Tensor

from tsae.tracking.active import Active, history
from tsae.tracking.correlation import TemporalCorrelationTracker
from tsae.tracking.relation import MOST


@torch.no_grad()
def dense_update(
    n_LFF: Tensor, active: Active, document_N: Tensor, tracker: TemporalCorrelationTracker
) -> Tensor:
    """n of the module's equations in F x F matrices, token by token: the reference for small F.

    Takes and returns n [window, F, F] (row j, column i); call it after ``tracker`` has read the
    same tokens, since it takes W, the usual codes and the settings from there.
    """
    L, F, S = tracker.count_LFS.shape
    new_LFF = (1 - tracker.alpha) * n_LFF
    relation = tracker.relation
    for lagged in history(active, document_N, L, tracker.bits):
        W_FF = relation.U_FR @ torch.diag(relation.s_LR[lagged.lag - 1]) @ relation.V_FR.t()
        past = tracker.usual(lagged.past)
        for n in range(len(lagged.rows_n)):
            z_F, past_F = (
                torch.zeros(F).index_add_(0, part.ids_NM[n], part.values_NM[n])
                for part in (lagged.now, past)
            )
            R_FF = (W_FF * past_F).exp().clamp(max=MOST) * (z_F > 0)[:, None] * (past_F > 0)
            new_LFF[lagged.lag - 1] += R_FF.t()
    order = new_LFF.argsort(dim=-1, descending=True, stable=True)[..., :S]
    return torch.zeros_like(new_LFF).scatter(-1, order, new_LFF.gather(-1, order))
