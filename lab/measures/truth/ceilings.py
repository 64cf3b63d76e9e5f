"""What a supervised reader gets from the residual, with and without memory: the ceilings of truth."""

import numpy as np

from lab.measures.nulls import DECAYS, averaged
from lab.measures.reading import Reading, Tokens
from lab.measures.truth.codes import numbered, variables
from lab.measures.truth.ranking import F1, single


def ceilings(reading: Reading) -> dict[str, np.ndarray]:
    """Scores [3, C] (AP, AUROC, F1) on the test split of ``probe``, a linear probe on x, and of
    ``probe_ema``, one on EMA(x): one against the rest, by ridge regression of the classes on [x, 1].

    Fitted on train tokens, the EMA's decay and the thresholds chosen on the split for choices,
    scored on test; as many tokens as families read. Made once a reading.
    """
    if "ceilings" not in reading.shared:
        tried = [probed(reading, decay) for decay in (0.0, *DECAYS)]
        chosen_MC = np.stack([choice for choice, _ in tried[1:]]).argmax(0)
        test_DMC = np.stack([test for _, test in tried[1:]])
        best_MC = np.take_along_axis(test_DMC, chosen_MC[None], 0)[0]
        reading.shared["ceilings"] = {"probe": tried[0][1], "probe_ema": best_MC}
    return reading.shared["ceilings"]


def probed(reading: Reading, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores [3, C] on the split for choices and on test of a probe on x (decay 0) or EMA(x)."""
    weights_DC = ridge(*gathered(reading, "train", decay))
    scores = []
    for split in (reading.choices, "test"):
        x_ND, y_NC = gathered(reading, split, decay)
        score_NC = x_ND @ weights_DC
        scores.append(np.stack([single(s, y) for s, y in zip(score_NC.T, y_NC.T, strict=True)], 1))
    tried_4C, test_4C = scores
    on_NC = score_NC >= tried_4C[3]  # F1 on test is that of the threshold chosen before
    test_4C[F1] = 2 * (on_NC & y_NC).sum(0) / np.maximum(on_NC.sum(0) + y_NC.sum(0), 1)
    return tried_4C[:3], test_4C[:3]


def gathered(reading: Reading, split: str, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """[x, 1] float32 [N, D + 1] and the classes bool [N, C] of the valid tokens of a split."""
    parts, classes, specs = [], [], reading.store.label_specs
    for batch in reading.batches(split):
        x_BTD = averaged(batch, decay) if decay else batch.x_BTD
        t = Tokens.of(batch, x_BTD[..., :1], x_BTD)
        parts.append(np.pad(t.x_hat_ND.cpu().numpy(), ((0, 0), (0, 1)), constant_values=1.0))
        classes.append(numbered(t, specs))
    class_NL, count = np.concatenate(classes), len(variables(specs))
    y_NC = np.zeros((len(class_NL), count + 1), bool)
    np.put_along_axis(y_NC, class_NL.astype(int), True, 1)  # none is the last column
    return np.concatenate(parts), y_NC[:, :count]


def ridge(x_ND: np.ndarray, y_NC: np.ndarray) -> np.ndarray:
    """Weights [D, C] float32 of the least squares fit, with a small penalty."""
    x_ND = x_ND.astype(np.float64)
    scatter = x_ND.T @ x_ND
    scatter += 1e-4 * np.diag(scatter).mean() * np.eye(len(scatter))
    return np.linalg.solve(scatter, x_ND.T @ y_NC).astype(np.float32)
