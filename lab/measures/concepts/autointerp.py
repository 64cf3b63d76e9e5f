r"""Automated interpretability as detection: explain a latent on training text, find it on test text.

The *lexical explainer* needs no service. For each latent, every token v and every pair (u, v) of
neighbouring tokens in the training text gets the smoothed rate at which the latent fires there,

    r(v) = (active(v) + a p) / (n(v) + a),   r(u, v) = (active(u, v) + a r(v)) / (n(u, v) + a),

p being the latent's overall rate and a = 5. The explanation is the ``size`` tokens and ``size``
pairs of highest rate above p. On test tokens the explanation says "active" where its token or pair
stands; ``detection`` = (recall on active + recall on inactive tokens) / 2, chance ½;
``detection_auroc``: area under the ROC curve of the rate of what stands there (p where nothing
does). ``explained_by_words`` = share of latents with detection ≥ 0.8. A latent that follows the
context and not the word cannot be told by words: its low score says so and is no fault of it.

The *endpoint explainer* asks a model behind an OpenAI-compatible ``/chat/completions``: once for an
explanation from the strongest snippets, once for the numbers of the test snippets that fit it;
``detection_endpoint`` is the same balanced accuracy.

Source: SAEBench ``autointerp`` (arXiv 2503.09532), detection scoring of Paulo et al. (arXiv
2410.13928); the lexical explainer is of this project.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from lab.measures.concepts.endpoint import Endpoint
from lab.measures.tokens import Measured, Tokens, latent_groups, row

SMOOTHING = 5.0
GOOD = 0.8
CONTEXT = 12
"""Tokens of a snippet, of which the last one is asked about."""


class Text(NamedTuple):
    """N tokens in reading order: id, previous id in the piece (−1: none), codes of L latents."""

    token_N: np.ndarray
    previous_N: np.ndarray
    z_NL: np.ndarray


class Explanation(NamedTuple):
    """Of one latent: rates of its tokens and of its pairs, and its overall rate."""

    tokens: dict[int, float]
    pairs: dict[tuple[int, int], float]
    rate: float


def read(
    sae: Any, store: Any, split: str, limit: int, latents: np.ndarray | None, **reading: Any
) -> Text:
    """The valid tokens of a split, with the codes of ``latents`` (None: all)."""
    device, parts, seen = reading["device"], [], 0
    for batch in store.batches(split, reading["batch_size"]):
        batch = batch.to(device)
        out = sae(batch.x_BTD, batch.context)
        t = Tokens.of(batch, out.z, out.x_hat)
        token_N = batch.tokens_BT[batch.context.mask_BT.bool()]
        previous_N = token_N.roll(1)
        opens_N = t.piece_N != t.piece_N.roll(1)
        opens_N[:1] = True
        previous_N[opens_N] = -1
        z_NL = t.z_NF if latents is None else t.z_NF[:, latents]
        parts.append(Text(*(a.cpu().numpy() for a in (token_N, previous_N, z_NL))))
        seen += len(t)
        if seen >= limit:
            break
    return Text(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def rates(
    key_N: np.ndarray, active_NL: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, and the smoothed rate [K, L] of each; prior: [L], or [N, L] equal in a key."""
    keys, first, index = np.unique(key_N, return_index=True, return_inverse=True)
    n = len(key_N)
    member = coo_array((np.ones(n), (index, np.arange(n))), shape=(len(keys), n)).tocsr()
    count = member.sum(1)[:, None]
    prior = prior[first] if prior.ndim == 2 else prior
    return keys, (member @ active_NL + SMOOTHING * prior) / (count + SMOOTHING)


def explain(text: Text, size: int) -> list[Explanation]:
    """The lexical explanation of each latent of ``text``."""
    active = (text.z_NL > 0).astype(np.float64)
    p_L = active.mean(0)
    tokens, r_VL = rates(text.token_N, active, p_L)
    within = np.flatnonzero(text.previous_N >= 0)
    span = int(text.token_N.max()) + 1
    key = text.previous_N[within].astype(np.int64) * span + text.token_N[within]
    backed_off = r_VL[np.searchsorted(tokens, text.token_N[within])]
    pairs, r_PL = rates(key, active[within], backed_off)
    found = []
    for i, p in enumerate(p_L):
        best = [np.argsort(-r[:, i], kind="stable")[:size] for r in (r_VL, r_PL)]
        found.append(
            Explanation(
                {int(tokens[v]): r_VL[v, i] for v in best[0] if r_VL[v, i] > p},
                {divmod(int(pairs[v]), span): r_PL[v, i] for v in best[1] if r_PL[v, i] > p},
                float(p),
            )
        )
    return found


def detection(explanation: Explanation, text: Text, active_N: np.ndarray) -> tuple[float, float]:
    """Balanced accuracy and AUROC of the explanation on the tokens of ``text``."""
    token_rate = np.array([explanation.tokens.get(int(v), 0.0) for v in text.token_N])
    pairs = zip(text.previous_N.tolist(), text.token_N.tolist(), strict=True)
    pair_rate = np.array([explanation.pairs.get(pair, 0.0) for pair in pairs])
    rate = np.maximum(token_rate, pair_rate)
    said = rate > 0
    balanced = (said[active_N].mean() + (~said[~active_N]).mean()) / 2
    area = roc_auc_score(active_N, np.where(said, rate, explanation.rate))
    return float(balanced), float(area)


def measure(
    saes: Mapping[str, Any],
    store: Any,
    world: Any = None,
    *,
    limit_tokens: int,
    selection_tokens: int,
    batch_size: int,
    seed: int,
    device: str,
    progress: bool,
    latents: int = 100,
    size: int = 10,
    cases: int = 100,
    min_count: int = 10,
    endpoint: Mapping[str, Any] | None = None,
    endpoint_latents: int = 10,
) -> dict[str, Measured]:
    """Rows ``detection``, ``detection_auroc``, ``explained_by_words``, by group of latents.

    ``latents`` random ones of those with ``min_count`` active tokens in either split; of each at
    most ``cases`` active and as many inactive test tokens. ``endpoint``: url, model and key_env
    (the environment variable that holds the key) of an OpenAI-compatible service, which then also
    gives ``detection_endpoint`` for ``endpoint_latents`` of them. Table ``explanations``: latent,
    words, detection.
    """
    asked = Endpoint(**endpoint) if endpoint else None
    reading = {"batch_size": batch_size, "device": device}
    found = {}
    for name, sae in tqdm(saes.items(), desc="autointerp", disable=not progress):
        generator = np.random.default_rng(seed)
        train = read(sae, store, "train", selection_tokens, None, **reading)
        test = read(sae, store, "test", limit_tokens, None, **reading)
        fires = np.minimum(*((text.z_NL > 0).sum(0) for text in (train, test)))
        usual = (fires >= min_count) & (fires <= len(test.token_N) - min_count)
        chosen = np.sort(generator.permutation(np.flatnonzero(usual))[:latents])
        train, test = (text._replace(z_NL=text.z_NL[:, chosen]) for text in (train, test))
        table = []
        for i, explanation in enumerate(explain(train, size)):
            active_N = test.z_NL[:, i] > 0
            sides = [
                generator.permutation(np.flatnonzero(s))[:cases] for s in (active_N, ~active_N)
            ]
            at = np.concatenate([side[: min(map(len, sides))] for side in sides])
            here = Text(test.token_N[at], test.previous_N[at], test.z_NL[at])
            entry = {"latent": int(chosen[i]), "words": ""}
            entry["detection"], entry["detection_auroc"] = detection(
                explanation, here, active_N[at]
            )
            if world is not None:
                entry["words"] = " ".join(world.to_strings(list(explanation.tokens)))
            if asked and i < endpoint_latents and world is not None:
                snippets = (
                    _snippets(train, i, world, generator),
                    _snippets(test, i, world, generator),
                )
                entry["detection_endpoint"] = asked.detection(*snippets)
            table.append(entry)
        found[name] = _measured(table, latent_groups(sae, sae.cfg.d_sae, "cpu"))
    return found


def _snippets(
    text: Text, i: int, world: Any, generator: np.random.Generator, n: int = 8
) -> list[tuple[str, bool]]:
    """n texts that end in an active token, the strongest first, and n that do not."""
    strong = np.argsort(-text.z_NL[:, i], kind="stable")[:n]
    weak = generator.permutation(np.flatnonzero(text.z_NL[:, i] == 0))[:n]
    found = []
    for at in [*strong, *weak]:
        words = world.to_strings(text.token_N[max(0, at - CONTEXT + 1) : at + 1].tolist())
        found.append((" ".join([*words[:-1], f"<<{words[-1]}>>"]), bool(text.z_NL[at, i] > 0)))
    return found


def _measured(table: list[dict[str, Any]], groups: Mapping[str, Any]) -> Measured:
    frame = pd.DataFrame(table)
    rows = []
    for group, ids in groups.items():
        mine = frame[frame["latent"].isin(ids.tolist())] if len(frame) else frame
        if not len(mine):
            continue
        n = len(mine)
        rows += [row(m, group, mine[m].mean(), n) for m in ("detection", "detection_auroc")]
        rows.append(row("explained_by_words", group, (mine["detection"] >= GOOD).mean(), n))
        if "detection_endpoint" in mine:
            told = mine["detection_endpoint"].dropna()
            rows.append(row("detection_endpoint", group, told.mean(), len(told)))
    return Measured(rows, tables={"explanations": frame} if len(frame) else None)
