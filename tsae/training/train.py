r"""One trainer for every variant.

A step is: loss, gradient, projection (``sae.project_gradients``), clipping, Adam, unit-norm decoder
(``sae.finish_step``). The learning rate is ``lr * min(1, (s+1)/warmup) * min(1, (n-s)/(share*n))``
at step s of n. The phases of a variant are data (:class:`tsae.saes.Phase`): the trainer splits the
steps by their shares and freezes what is outside ``trainable``. A run killed at any moment and
started again with the same arguments ends with the same files, on a CPU bit for bit. Under
``torchrun`` each rank trains on its share of every batch (:mod:`tsae.training.distributed`).
"""

import contextlib
import json
import math
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from tsae import saes
from tsae.errors import UserError
from tsae.files import disk_full_is_clear
from tsae.kernels.denormals import flushed
from tsae.kernels.memory import keep_freed_blocks
from tsae.saes.base import SAE, Phase
from tsae.training import checkpoint, distributed, resampling
from tsae.training.config import TrainConfig, check_fit, seen_positions
from tsae.training.schedule import learning_rate, phase_ends, set_trainable


class TrainResult(NamedTuple):
    """The trained SAE, in ``eval`` mode, and the last line of its log."""

    sae: SAE
    last: dict[str, Any]


@flushed()
def training_step(sae: SAE, batch, optimizer, config: TrainConfig) -> tuple[dict, Tensor]:
    """One update; returns the whole batch's loss terms and gradient norm (:func:`clip`).

    Raises ``FloatingPointError`` naming the term that is not finite, before any weight moves.
    """
    optimizer.zero_grad(set_to_none=True)
    device = batch.x_BTD.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.amp and device == "cuda"):
        terms = sae.loss(batch.x_BTD, batch.context)
    share = distributed.share(batch.context)
    terms["total"].backward(share)
    terms = distributed.summed(terms, share)
    distributed.sum_gradients(sae)
    sae.project_gradients()
    norm, norm_apart = clip(sae, config.grad_clip / sae.cfg.d_in)
    if not math.isfinite(terms["total"].item() + norm.item() + norm_apart.item()):
        values = {k: float(v.detach()) for k, v in terms.items() if k != "total"}
        values |= {"total": float(terms["total"].detach())}
        values |= {"gradient": float(norm), "gradient of what is apart": float(norm_apart)}
        term = next(k for k, v in values.items() if not math.isfinite(v))
        raise FloatingPointError(f"term {term!r} of the loss is {values[term]}")
    optimizer.step()
    sae.finish_step()
    return {name: value.detach() for name, value in terms.items()}, norm


def clip(sae: SAE, longest: float) -> tuple[Tensor, Tensor]:
    """Shorten the gradient to ``longest``, and that of ``sae.apart`` by itself; both norms before."""
    inside: list[Tensor] = []
    apart: list[Tensor] = []
    for name, parameter in sae.named_parameters():
        (apart if name.startswith(sae.apart) else inside).append(parameter)
    cut = torch.nn.utils.clip_grad_norm_
    return cut(inside, longest), cut(apart, longest)


@torch.no_grad()
def held_out(sae: SAE, batch, mean_D: Tensor) -> dict[str, float]:
    """``test_fve`` = 1 - sum|x - x_hat|^2 / sum|x - mean|^2 (mean: of the train split) and
    ``test_l0``, both over the batch's valid tokens."""
    training = sae.training
    out = sae.eval()(batch.x_BTD, batch.context)
    sae.train(training)
    mask = batch.context.mask_BT
    sse = (batch.x_BTD - out.x_hat)[mask].square().sum()
    sst = (batch.x_BTD - mean_D)[mask].square().sum()
    l0 = (out.z[mask] != 0).sum(-1).float().mean()
    return {"test_fve": float(1 - sse / sst), "test_l0": float(l0)}


def train(
    sae: SAE,
    store,
    directory: str | Path,
    config: TrainConfig,
    progress: bool = True,
    meta: dict[str, Any] | None = None,
) -> TrainResult:
    """Train ``sae`` on the activations of ``store``; write all under ``directory``.

    ``train.jsonl``: step, phase, lr, gradient norm, terms of the loss, dead latents and held-out
    FVE and L0; no wall times, so that a resumed run writes the same bytes. ``timing.jsonl``: wall
    seconds of each process. ``checkpoint/`` while unfinished. ``sae/`` last; if it is there and
    of the same run, nothing is trained and it is loaded. ``meta`` joins the provenance in it.
    Of several ranks the first writes; a run may go on with another number of them, as the same run
    but for rounding.

    Raises :class:`UserError` (no GPU, too few sequences, a term that is not finite, disk full) and
    :class:`CheckpointError` (what is in ``directory`` is truncated or of another run).
    """
    keep_freed_blocks()
    directory = Path(directory)
    check_fit(sae, store, config)
    identity = checkpoint.identity(sae, store, config)
    if (directory / "sae").exists():
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn before they are read
            return finished(directory, identity, config.device)
    distributed.wait()  # or a slow rank might see what a fast one has written
    directory.mkdir(parents=True, exist_ok=True)
    learnable = [name for name, p in sae.named_parameters() if p.requires_grad]
    outside = checkpoint.rng_state()
    try:
        with disk_full_is_clear(directory):
            last = run_steps(sae, store, directory, config, identity, learnable, progress)
    finally:
        checkpoint.set_rng_state(outside)
        set_trainable(sae, Phase("", 1.0), learnable)
    sae.zero_grad(set_to_none=True)
    provenance = {"scale": float(store.scale), "world": store.world, "layer": store.layer}
    sae.meta |= {**provenance, "fingerprint": store.fingerprint, **(meta or {}), "run": identity}
    sae.eval()
    if distributed.rank() == 0:
        sae.save(directory / "sae")
        checkpoint.clear(directory)
    distributed.wait()
    return TrainResult(sae, last)


def run_steps(sae, store, directory, config, run, learnable, progress) -> dict[str, Any]:
    """The loop of :func:`train`; returns the last line of the log."""
    length = seen_positions(config, store.seq_len)
    batch_size = config.batch_tokens // length
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    torch.manual_seed(config.seed)
    sae.to(config.device).train()
    mean_D = torch.as_tensor(store.mean_D, dtype=torch.float32, device=config.device)
    optimizer = torch.optim.AdamW(
        sae.parameters(), config.lr, config.betas, weight_decay=config.weight_decay, fused=True
    )
    ranks = (distributed.rank(), distributed.world_size())
    sampler = store.sampler("train", batch_size, config.seed, *ranks)
    position = checkpoint.read(directory, run, sae, optimizer, sampler)
    if position is None:
        sae.initialise(mean_D)
    start, log_bytes = position or checkpoint.Progress(0, 0)
    test = None
    if config.eval_every:
        n_test = min(config.eval_sequences, store.n_sequences("test"))
        test = store.batch("test", np.arange(n_test), config.device)

    phases = sae.phases()
    ends = phase_ends(phases, config.steps)
    phase, row, began = None, {}, time.perf_counter()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(checkpoint.open_log(directory / "train.jsonl", log_bytes))
        bar = tqdm(total=config.steps, initial=start, disable=not progress, desc=sae.name)
        stack.enter_context(bar)
        for step in range(start, config.steps):
            current = phases[next(i for i, end in enumerate(ends) if step < end)]
            if current is not phase:
                phase = current
                set_trainable(sae, phase, learnable)
            sae.start_step(step, config.steps, phase)
            lr = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = store.batch("train", sampler.next_indices(), config.device)
            try:
                terms, norm = training_step(sae, batch.first(length), optimizer, config)
            except FloatingPointError as error:
                raise UserError(
                    f"Training of {sae.name} stopped at step {step + 1}: {error}; lower lr (now "
                    f"{lr:.3g}) or check the store; the last checkpoint in {directory} is kept."
                ) from None

            done = step + 1
            extra: dict[str, float] = {}
            if resampling.due(sae, done, config):
                pool = resampling.pool(store, config, done)
                extra["resampled"] = resampling.resample(sae, optimizer, pool)
            if test is not None and (done % config.eval_every == 0 or done == config.steps):
                extra |= held_out(sae, test, mean_D)
            if extra or done % config.log_every == 0 or done == config.steps:
                tokens = done * batch_size * length
                row = {"step": done, "phase": phase.name, "tokens": tokens, "lr": lr}
                row |= {"grad_norm": float(norm), "dead": int(sae.dead_latents().sum())}
                row |= {name: float(value) for name, value in terms.items()} | extra
                log.write(json.dumps(row).encode() + b"\n")
                log.flush()
                bar.set_postfix(phase=phase.name, loss=f"{row['total']:.4f}", refresh=False)
            bar.update()
            due = done % config.checkpoint_every == 0 or done == config.steps
            if due and distributed.rank() == 0:
                log.flush()
                where = checkpoint.Progress(done, log.tell())
                checkpoint.write(directory, run, where, sae, optimizer, sampler)
                seconds = {"from": start, "to": done, "seconds": time.perf_counter() - began}
                with open(directory / "timing.jsonl", "a", encoding="utf-8") as timing:
                    timing.write(json.dumps(seconds) + "\n")
    return row or checkpoint.last_row(directory)


def finished(directory: Path, run: dict, device: str) -> TrainResult:
    """The result of a run that ended before, if it is the same run."""
    sae = saes.load(directory / "sae", device)
    checkpoint.check_identity(sae.meta.get("run", {}), run, directory / "sae")
    checkpoint.clear(directory)
    return TrainResult(sae, checkpoint.last_row(directory))
