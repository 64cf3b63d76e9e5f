"""The microworld's language model: a small transformer, trained on its sequences from scratch."""

import json
import math
import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm

from lab.worlds.microworld.config import MicroworldConfig
from lab.worlds.microworld.muon import Muon
from tsae.errors import CheckpointError, WorldError
from tsae.files import atomic

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WARM_UP = 0.1
LAST_LR = 0.1
SHORT_SHARE = 0.4


def boot(config: MicroworldConfig, vocab_size: int) -> "TransformerBridge":
    """The untrained model: pre-LN blocks, GELU, rotary positions, weights by ``config.seed``."""
    from transformer_lens.config import TransformerBridgeConfig  # seconds, which training spares
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_native(
        TransformerBridgeConfig(
            architecture="TransformerLensNative",
            d_model=config.d_model,
            d_head=config.d_model // config.n_heads,
            n_heads=config.n_heads,
            n_layers=config.n_layers,
            n_ctx=config.seq_len,
            d_vocab=vocab_size,
            d_mlp=4 * config.d_model,
            act_fn="gelu",
            normalization_type="LN",
            positional_embedding_type="rotary",
            seed=config.seed,
        ),
        model_name="microworld",
    )


def load(path: Path, config: MicroworldConfig, vocab_size: int) -> "TransformerBridge":
    """The model with the weights in ``path``, in eval mode and without gradients."""
    model = boot(config, vocab_size)
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


def optimizers(model: "TransformerBridge", config: MicroworldConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embedding, unembedding, norms and biases.

    With AdamW alone the facts are learnt after twice as many tokens.
    """
    inner: list[torch.nn.Parameter] = []
    outer: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and ("layers." in name or "blocks." in name)
        (inner if hidden else outer).append(parameter)
    return [
        Muon(inner, lr=config.lr),
        torch.optim.AdamW(outer, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def learning_rate(config: MicroworldConfig, step: int) -> float:
    """Linear warm-up over the first tenth of the steps, then cosine from ``lr`` to ``lr``/10."""
    warm_up = max(round(WARM_UP * config.steps), 1)
    if step < warm_up:
        return config.lr * (step + 1) / warm_up
    done = (step - warm_up) / max(config.steps - warm_up, 1)
    return config.lr * (LAST_LR + (1 - LAST_LR) * 0.5 * (1 + math.cos(math.pi * done)))


def batch_rows(n: int, config: MicroworldConfig, step: int) -> np.ndarray:
    """Rows of the batch at ``step``: endless passes over n sequences, each in its own order."""
    first = step * config.batch_size
    positions = np.arange(first, first + config.batch_size)
    rows = np.empty(len(positions), np.int64)
    for epoch in np.unique(positions // n):
        order = np.random.default_rng([config.seed, int(epoch)]).permutation(n)
        here = positions // n == epoch
        rows[here] = order[positions[here] % n]
    return rows


def train(
    config: MicroworldConfig,
    tokens_NT: np.ndarray,
    recall_NT: np.ndarray,
    vocab_size: int,
    directory: Path,
    progress: bool,
) -> None:
    """Train on ``tokens_NT`` [N,T] and leave ``model.safetensors`` in ``directory``.

    Minimises the weighted mean of −log p(token t+1 | tokens ≤ t). Tokens where ``recall_NT`` is 1
    weigh ``recall_weight``: there the context calls for a fact's value and nothing else, so that
    the best prediction stays the same. Sequences are cut in four during the first 40% of the
    steps, because attention finds the entity sooner among fewer tokens. The gradient's norm is
    clipped at 1.

    ``train.jsonl`` gets a line every ten steps: step, ce (nats, not weighted), recall_ce, lr,
    seconds. ``checkpoint.pt`` holds weights, moments, log and step; a run that was killed goes on
    from it and ends, on one kind of CPU, with the same bits as one that was not.
    """
    final = directory / "model.safetensors"
    if final.exists():
        return
    model = boot(config, vocab_size)
    both = optimizers(model, config)
    checkpoint, log = directory / "checkpoint.pt", directory / "train.jsonl"
    done, lines = _resume(checkpoint, model, both)
    data_NT = torch.from_numpy(tokens_NT.astype(np.int64))
    recalled_NT = torch.from_numpy((recall_NT == 1).astype(np.float32))
    weight_NT = 1 + (config.recall_weight - 1) * recalled_NT
    model.train()
    began = time.monotonic()
    steps = tqdm(
        range(done, config.steps),
        desc="microworld: language model",
        initial=done,
        total=config.steps,
        disable=not progress,
    )
    for step in steps:
        lr = learning_rate(config, step)
        rows = batch_rows(len(data_NT), config, step)
        length = config.seq_len // 4 if step < SHORT_SHARE * config.steps else config.seq_len
        batch_BT, weight_BT = (x[rows].reshape(-1, length) for x in (data_NT, weight_NT))
        # The wrapped module itself: the bridge's own forward spends a tenth of the time on hooks.
        logits_BTV = model.original_model(batch_BT)
        targets = batch_BT[:, 1:].flatten()
        ce = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets, reduction="none")
        weight = weight_BT[:, 1:].flatten()
        loss = (ce * weight).sum() / weight.sum()
        for optimizer in both:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        if not math.isfinite(loss.item()):
            raise WorldError(
                f"The microworld's model diverged at step {step} (loss {loss.item()}); "
                "build it in a new directory with a smaller lr."
            )
        if step % 10 == 0 or step == config.steps - 1:
            recalled = ce[weight > 1].mean().item() if (weight > 1).any() else None
            line = {"step": step, "ce": ce.mean().item(), "recall_ce": recalled, "lr": lr}
            lines.append(json.dumps(line | {"seconds": time.monotonic() - began}))
            steps.set_postfix(ce=f"{ce.mean().item():.3f}")
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            _save(checkpoint, model, both, lines, step + 1)
    with atomic(log) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with atomic(final) as temporary:
        weights = model.state_dict().items()
        save_file({name: value.contiguous().clone() for name, value in weights}, temporary)
    checkpoint.unlink(missing_ok=True)


def _save(
    path: Path,
    model: "TransformerBridge",
    both: list[torch.optim.Optimizer],
    lines: list[str],
    step: int,
) -> None:
    moments = [optimizer.state_dict() for optimizer in both]
    with atomic(path) as temporary:
        torch.save((model.state_dict(), moments, lines, step), temporary)


def _resume(
    path: Path, model: "TransformerBridge", both: list[torch.optim.Optimizer]
) -> tuple[int, list[str]]:
    """Restore the checkpoint at ``path`` where there is one; returns its step and the log's lines."""
    if not path.exists():
        return 0, []
    try:
        saved: tuple[dict[str, Any], list[dict[str, Any]], list[str], int] = torch.load(path)
        weights, moments, lines, step = saved
        model.load_state_dict(weights)
        for optimizer, state in zip(both, moments, strict=True):
            optimizer.load_state_dict(state)
    except (EOFError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is cut short or not of this model; "
            "delete it, and training starts again from step 0."
        ) from error
    return step, lines
