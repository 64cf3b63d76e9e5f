r"""Unlearning by changed weights, beside edits of the residual; and learning again on top of one.

    rmu    ‖h(x) − c u‖² / c²  on text to forget                       (Li et al. 2024, 2403.03218)
    lora   m/100 · Σ_{i chosen} relu(pre_i(h(x))) / its mean before    (CRISP, Ashuach et al. 2025)
    both   + 10 ‖h(x) − h₀(x)‖² / ‖h₀(x)‖²  on text to keep

h is the residual at the edit's layer, h₀ the clean model's, u a random direction, c = m per cent of
the median norm. Trained are the last three blocks up to the layer: rmu their matrices, lora a
product of rank 4 added to each. :func:`relearned` trains the blocks above, with the edit in place.
"""

import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lab.edits.edit import Edit
from lab.measures.unlearning.bench import Bench, Rows
from lab.worlds.knowledge import Question
from tsae import models

BLOCKS, RANK, STEPS, LR, KEEP, BATCH = 3, 4, 60, 1e-3, 10.0, 8


class LowRank(nn.Module):
    """W + A B, with B = 0 at first."""

    def __init__(self, weight: Tensor, rank: int = RANK):
        super().__init__()
        n, d = weight.shape
        self.A = nn.Parameter(torch.randn(n, rank, device=weight.device) / n**0.5)
        self.B = nn.Parameter(torch.zeros(rank, d, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with the product added."""
        return weight + self.A @ self.B


def matrices(model: nn.Module, blocks: Container[int]) -> list[Any]:
    """The modules of the wanted blocks that own a matrix; a block is the first number in a name."""
    found = {}
    for name, module in model.named_modules():
        at = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        weight = module._parameters.get("weight")
        if at and int(at[1]) in blocks and weight is not None and weight.ndim == 2:
            found[id(weight)] = module
    return list(found.values())


@contextmanager
def trained(
    model: nn.Module,
    blocks: Container[int],
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float = LR,
    low_rank: bool = False,
) -> Iterator[None]:
    """The model with the matrices of the wanted blocks trained by Adam on ``loss(step)``; as it was,
    afterwards."""
    modules = matrices(model, blocks) if steps else []
    before = [module.weight.detach().clone() for module in modules]
    params: list[nn.Parameter] = []
    try:
        for module in modules:
            if low_rank:
                product = LowRank(module.weight)
                parametrize.register_parametrization(module, "weight", product)
                params += [product.A, product.B]
            else:
                params.append(module.weight.requires_grad_(True))
        if params:
            adam = torch.optim.Adam(params, lr=lr)
            with torch.enable_grad():
                for step in range(steps):
                    adam.zero_grad()
                    loss(step).backward()
                    adam.step()
        yield
    finally:
        for module, weight in zip(modules, before, strict=True):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight.requires_grad_(False)
            module.weight.data.copy_(weight)


def relearned(bench: Bench, edit: Edit, questions: Sequence[Question], steps: int) -> Any:
    """The model trained to answer ``questions`` of the forget subject under the edit."""
    texts = [q.prompt + q.choices[q.answer] for q in questions if q.neighbourhood == "forget"]
    layer = bench.store.layer

    def loss(step: int) -> Tensor:
        tokens_BT = batch_of(texts, step, bench.device)
        context = bench.context(tokens_BT)
        edit.within(context)
        hooks = [(f"blocks.{layer}.hook_out", lambda x_BTD, hook: edit(x_BTD).to(x_BTD.dtype))]
        given: dict[str, Any] = {"return_type": "logits", "prepend_bos": False}
        logits_BTV = bench.model.run_with_hooks(tokens_BT, fwd_hooks=hooks, **given)
        real_BT = context.mask_BT[:, 1:]
        return nn.functional.cross_entropy(logits_BTV[:, :-1][real_BT], tokens_BT[:, 1:][real_BT])

    above = range(layer + 1, models.n_layers(bench.model))
    return trained(bench.model, above, loss, steps if texts else 0, lr=1e-4)


def batch_of(texts: Sequence[tuple[int, ...]], step: int, device: str) -> Tensor:
    """The texts of a step, by turns, padded on the right with 0."""
    some = [texts[(step * BATCH + i) % len(texts)] for i in range(min(BATCH, len(texts)))]
    return nn.utils.rnn.pad_sequence([torch.tensor(t) for t in some], batch_first=True).to(device)


@torch.no_grad()
def swept(bench: Bench, name: str, chosen: Tensor) -> tuple[Rows, list[pd.DataFrame]]:
    """Rows and document rows of ``rmu`` or ``lora`` (of the chosen latents) over the strengths, as
    of an edit; their group is ``weights/rmu|m=…``."""
    config, store, sae = bench.config, bench.store, bench.sae
    texts = {forget: bench.token_rows(forget) for forget in (True, False)}
    generator = torch.Generator().manual_seed(config.seed)
    u_D = nn.functional.normalize(torch.randn(store.d_model, generator=generator), dim=0)

    W_DK, b_K = sae.W_enc.detach()[:, chosen], sae.b_enc.detach()[chosen]
    b_dec_D = sae.b_dec.detach()

    def hidden(step: int, forget: bool) -> Tensor:
        """The residuals [N, d] of a step's valid tokens."""
        tokens_BT = batch_of(texts[forget], step, bench.device)
        h_BTD = models.residual(bench.model, tokens_BT, store.layer, torch.is_grad_enabled())
        return h_BTD[:, 1:][bench.context(tokens_BT).mask_BT[:, 1:]]

    def said(h_ND: Tensor) -> Tensor:
        pre_NK = (h_ND * store.scale - b_dec_D) @ W_DK + b_K
        return pre_NK.relu().sum(-1).mean()

    clean = [hidden(step, False) for step in range(STEPS)]
    usual = torch.stack([said(hidden(step, True)) for step in range(4)]).mean().clamp_min(1e-6)
    blocks = range(store.layer - BLOCKS + 1, store.layer + 1)
    rows: Rows = []
    documents: list[pd.DataFrame] = []
    for m in config.strengths:
        c = m / 100 * store.median_norm

        def loss(step: int, m: float = m, c: float = c) -> Tensor:
            h_ND, kept_ND, was_ND = hidden(step, True), hidden(step, False), clean[step]
            moved = (kept_ND - was_ND).square().sum() / was_ND.square().sum()
            if name == "rmu":
                return (h_ND - c * u_D.to(h_ND)).square().sum(-1).mean() / c**2 + KEEP * moved
            return m / 100 * said(h_ND) / usual + KEEP * moved

        with trained(bench.model, blocks, loss, STEPS, low_rank=name == "lora"):
            found, frames = bench.exam.ask(None, changed=True)
            more, frame = bench.reread(None)
        rows += [{**r, "group": f"weights/{name}|m={m:g}"} for r in (*found, *more)]
        documents += [f.assign(group=f"weights/{name}|m={m:g}") for f in (*frames, frame)]
        kept = next(r["value"] for r in found if r["metric"] == "unlearn_retained")
        if kept < config.stop_below:
            break
    return rows, documents
