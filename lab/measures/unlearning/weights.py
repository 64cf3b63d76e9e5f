r"""Unlearning by changed weights, beside edits of the residual; and learning again on top of one.

    rmu    forget: ‖h(x) − c u‖² / c²,   retain: ‖h(x) − h₀(x)‖² / ‖h₀‖²      (Li et al. 2403.03218)
    lora   forget: Σ_{i chosen} relu(pre_i(h(x))) / their mean before,   retain: the same

h is the residual at the edit's layer, h₀ the clean model's, u a random direction, c = m per cent of
the typical norm; for ``lora`` m per cent weighs the forget term (after CRISP, Ashuach et al. 2025:
latents are suppressed by the weights below them). Trained are the weights of the last three blocks
up to the layer: rmu their matrices, lora a rank-4 product added to each. ``relearned``: the blocks
above, with the edit in place, so that it is the edit's answers that are trained.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lab.edits import Edit
from lab.measures.reading import row
from lab.worlds.knowledge import Question
from tsae import models

if TYPE_CHECKING:
    from lab.measures.unlearning.bench import Bench
    from lab.measures.unlearning.cross import Cross

BLOCKS, RANK, STEPS, LR = 3, 4, 60, 1e-3
RETAIN_WEIGHT = 10.0
BATCH = 8
"""Texts a step."""


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


def block(name: str) -> int | None:
    """The block that a parameter or module is of: the first number in its name."""
    found = re.search(r"(?:^|\.)(\d+)\.", name + ".")
    return int(found[1]) if found else None


@contextmanager
def trained(
    model: nn.Module,
    wanted: Callable[[int], bool],
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float = LR,
    low_rank: bool = False,
) -> Iterator[None]:
    """The model with the matrices of the wanted blocks trained for some Adam steps; as it was,
    afterwards."""
    of = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.ndim == 2
        and (at := block(name)) is not None
        and wanted(at)
    }
    distinct = list({id(module.weight): module for module in of.values()}.values())
    before = [module.weight.detach().clone() for module in distinct]
    params: list[nn.Parameter] = []
    try:
        with torch.enable_grad():
            for module in distinct:
                if low_rank:
                    product = LowRank(module.weight)
                    parametrize.register_parametrization(module, "weight", product, unsafe=True)
                    params += [product.A, product.B]
                else:
                    params.append(module.weight.requires_grad_(True))
            if params:
                descend(params, loss, steps, lr)
        yield
    finally:
        for module, weight in zip(distinct, before, strict=True):
            if low_rank:
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight.requires_grad_(False)
            with torch.no_grad():
                module.weight.copy_(weight)


def descend(
    params: list[nn.Parameter], loss: Callable[[int], Tensor], steps: int, lr: float
) -> None:
    """Steps of Adam."""
    adam = torch.optim.Adam(params, lr=lr)
    for step in range(steps):
        adam.zero_grad()
        loss(step).backward()
        adam.step()


def relearned(bench: "Bench", edit: Edit, questions: Sequence[Question], steps: int) -> Any:
    """The model trained to answer ``questions`` of the forget subject under the edit."""
    texts = [q.prompt + q.choices[q.answer] for q in questions if q.neighbourhood == "forget"]

    def loss(step: int) -> Tensor:
        tokens_BT = batch_of(texts, step, bench.device)
        edit.within(bench.context(tokens_BT))
        name = f"blocks.{bench.store.layer}.hook_out"
        hooks = [(name, lambda x_BTD, hook: edit(x_BTD).to(x_BTD.dtype))]
        logits_BTV = bench.model.run_with_hooks(
            tokens_BT, fwd_hooks=hooks, return_type="logits", prepend_bos=False
        )
        real_BT = bench.context(tokens_BT).mask_BT[:, 1:]
        return nn.functional.cross_entropy(logits_BTV[:, :-1][real_BT], tokens_BT[:, 1:][real_BT])

    layer = bench.store.layer
    return trained(bench.model, lambda at: at > layer, loss, steps if texts else 0, lr=1e-4)


def batch_of(texts: Sequence[tuple[int, ...]], step: int, device: str) -> Tensor:
    """The texts of a step, by turns, padded on the right with 0."""
    some = [texts[(step * BATCH + i) % len(texts)] for i in range(min(BATCH, len(texts)))]
    rows = [torch.tensor(tokens) for tokens in some]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


def swept(
    bench: "Bench", cross: "Cross", name: str
) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """Rows and document rows of ``rmu`` or ``lora`` over the strengths, as of an edit; their group
    is ``weights/rmu|m=…``."""
    config, store, model = bench.config, bench.store, bench.model
    chosen = cross.chosen(config.retain_thresholds[0], config.n_latents[-1])
    texts = [bench.token_rows(forget) for forget in (True, False)]
    generator = torch.Generator().manual_seed(config.seed)
    u_D = torch.nn.functional.normalize(torch.randn(store.d_model, generator=generator), dim=0)
    u_D = u_D.to(bench.device)

    def hidden(step: int, side: int) -> tuple[Tensor, Any]:
        tokens_BT = batch_of(texts[side], step, bench.device)
        context = bench.context(tokens_BT)
        return models.residual(model, tokens_BT, store.layer, torch.is_grad_enabled()), context

    clean = [hidden(step, 1)[0] for step in range(STEPS)]
    first = [pre_of(bench, *hidden(step, 0), chosen) for step in range(4)]
    typical = float(torch.stack(first).mean().clamp_min(1e-6))

    blocks = range(store.layer - BLOCKS + 1, store.layer + 1)
    rows: list[dict[str, Any]] = []
    documents: list[pd.DataFrame] = []
    for m in config.strengths:
        c = m / 100 * store.median_norm

        def loss(step: int, m: float = m, c: float = c) -> Tensor:
            h_BTD, context = hidden(step, 0)
            if name == "rmu":
                gap_BTD = (h_BTD - c * u_D)[:, 1:][context.mask_BT[:, 1:]]
                forget = gap_BTD.square().sum(-1).mean() / c**2
            else:
                forget = m / 100 * pre_of(bench, h_BTD, context, chosen) / typical
            kept_BTD, context = hidden(step, 1)
            mask_BT = context.mask_BT[:, 1:]
            was_ND = clean[step][:, 1:][mask_BT]
            moved = (kept_BTD[:, 1:][mask_BT] - was_ND).square().sum() / was_ND.square().sum()
            return forget + RETAIN_WEIGHT * moved

        with trained(model, blocks.__contains__, loss, STEPS, low_rank=name == "lora"):
            answered = bench.exam.ask(None, changed=True)
            more, frame = bench.reread(None)
        group = f"weights/{name}|m={m:g}"
        rows += [{**r, "group": group} for r in (*answered[0], *more)]
        documents += [f.assign(group=group) for f in (*answered[1], frame)]
        kept = next(r["value"] for r in answered[0] if r["metric"] == "unlearn_retained")
        if kept < config.stop_below:
            break
    rows.append(
        row("unlearn_rank_tokens", f"weights/{name}", sum(map(len, texts[0])), len(texts[0]))
    )
    return rows, documents


def pre_of(bench: "Bench", h_BTD: Tensor, context: Any, chosen: Tensor) -> Tensor:
    """The chosen latents' positive static pre-activation, their mean over valid tokens."""
    sae = bench.sae
    x_BTD = (h_BTD * bench.store.scale)[:, 1:][context.mask_BT[:, 1:]]
    pre = (x_BTD - sae.b_dec) @ sae.W_enc[:, chosen] + sae.b_enc[chosen]
    return pre.relu().sum(-1).mean()
