r"""One trainer for every variant.

A step is: loss, gradient, projection (``sae.project_gradients``), clipping, Adam, unit-norm decoder
(``sae.finish_step``). The learning rate is ``lr * min(1, (s+1)/warmup) * min(1, (n-s)/(share*n))``
at step s of n. The phases of a variant are data (:class:`tsae.saes.Phase`): the trainer splits the
steps by their shares and freezes what is outside ``trainable``. A run killed at any moment and
started again with the same arguments ends with the same files, on a CPU bit for bit.
"""

import contextlib
import dataclasses
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

from tsae import checkpoint, resampling, saes
from tsae.errors import CheckpointError, UserError
from tsae.files import disk_full_is_clear
from tsae.saes.base import SAE, Phase, require
from tsae.schedule import learning_rate, phase_ends, set_trainable


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and how often; checked when made (``ValueError``)."""

    steps: int = 2441
    """Number of optimiser steps."""
    batch_tokens: int = 2048
    """Tokens a step, as ``batch_tokens // seq_len`` whole sequences."""
    positions: float = 1.0
    """Share of each sequence, from its start, that is trained on; what lies beyond is not seen."""
    lr: float = 3e-4
    """Peak learning rate of Adam."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); at 0 the optimiser is plain Adam."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly to its peak."""
    decay_share: float = 0.2
    """Last share of the steps, over which the learning rate falls linearly towards 0."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient of the squared error *summed* over dimensions, the unit in
    which others clip; our loss is a mean over d, so a gradient longer than grad_clip / d is cut."""
    seed: int = 0
    """Seed of the order of the data and of every draw made while training."""
    device: str = "cpu"
    """Where to train: cpu, cuda, or cuda:N."""
    amp: bool = True
    """Whether the loss is computed in bfloat16 autocast on a GPU (a CPU always uses float32)."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of ``train.jsonl``."""
    eval_every: int = 200
    """Steps between checks on held-out sequences; 0 checks never."""
    eval_sequences: int = 16
    """Number of held-out sequences in that check, always the same ones."""
    resample_every: int = 500
    """Steps between resamplings of dead latents (``relu`` alone; others have AuxK); 0: never."""
    resample_until: float = 0.6
    """Share of the steps after which nothing is resampled, so that new latents can settle."""
    resample_batches: int = 8
    """Batches among whose tokens the new directions are drawn."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        counts = ("steps", "batch_tokens", "checkpoint_every", "log_every", "eval_sequences")
        whole = ("warmup_steps", "eval_every", "resample_every", "seed")
        for field in (*counts, "resample_batches", *whole):
            value, least = getattr(self, field), 0 if field in whole else 1
            ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
            require(ok, field, value, f"a whole number of at least {least}")
        for field in ("lr", "grad_clip"):
            value = getattr(self, field)
            require(0 < value < math.inf, field, value, "above 0 and finite")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(ok, "betas", self.betas, "two numbers in [0, 1)")
        for field in ("decay_share", "resample_until"):
            require(0 <= getattr(self, field) <= 1, field, getattr(self, field), "in [0, 1]")
        fits = self.warmup_steps <= self.steps
        require(fits, "warmup_steps", self.warmup_steps, f"at most steps={self.steps}")
        require(0 < self.positions <= 1, "positions", self.positions, "above 0 and at most 1")
        kind, _, index = self.device.partition(":")
        ok = self.device in ("cpu", "cuda") or (kind == "cuda" and index.isdigit())
        require(ok, "device", self.device, "cpu, cuda or cuda:N")


def seen_positions(config: TrainConfig, seq_len: int) -> int:
    """How many positions of each sequence are trained on; at least BOS and one token."""
    return max(2, round(config.positions * seq_len))


class TrainResult(NamedTuple):
    """The trained SAE, in ``eval`` mode, and the last line of its log."""

    sae: SAE
    last: dict[str, Any]


def training_step(sae: SAE, batch, optimizer, config: TrainConfig) -> tuple[dict, Tensor]:
    """One update; returns the terms of the loss and the gradient's norm before clipping.

    Raises ``FloatingPointError`` naming the term that is not finite, before any weight moves.
    """
    optimizer.zero_grad(set_to_none=True)
    device = batch.x_BTD.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.amp and device == "cuda"):
        terms = sae.loss(batch.x_BTD, batch.context)
    terms["total"].backward()
    sae.project_gradients()
    norm = torch.nn.utils.clip_grad_norm_(sae.parameters(), config.grad_clip / sae.cfg.d_in)
    if not math.isfinite(terms["total"].item() + norm.item()):
        values = {k: float(v.detach()) for k, v in terms.items() if k != "total"}
        values |= {"total": float(terms["total"].detach()), "gradient": float(norm)}
        term = next(k for k, v in values.items() if not math.isfinite(v))
        raise FloatingPointError(f"term {term!r} of the loss is {values[term]}")
    optimizer.step()
    sae.finish_step()
    return {name: value.detach() for name, value in terms.items()}, norm


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

    Raises :class:`UserError` (no GPU, too few sequences, a term that is not finite, disk full) and
    :class:`CheckpointError` (what is in ``directory`` is truncated or of another run).
    """
    directory = Path(directory)
    check_fit(sae, store, config)
    run = checkpoint.identity(sae, store, config)
    if (directory / "sae").exists():
        return finished(directory, run, config.device)
    directory.mkdir(parents=True, exist_ok=True)
    before = checkpoint.rng_state()
    learnable = [name for name, p in sae.named_parameters() if p.requires_grad]
    try:
        with disk_full_is_clear(directory):
            last = run_steps(sae, store, directory, config, run, learnable, progress)
    finally:
        checkpoint.set_rng_state(before)
        set_trainable(sae, Phase("", 1.0), learnable)
    sae.zero_grad(set_to_none=True)
    provenance = {"scale": float(store.scale), "world": store.world, "layer": store.layer}
    sae.meta |= {**provenance, "fingerprint": store.fingerprint, **(meta or {}), "run": run}
    sae.eval().save(directory / "sae")
    checkpoint.clear(directory)
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
    sampler = store.sampler("train", batch_size, config.seed)
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
            sae.start_step(step, config.steps, phase.name)
            lr = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = store.batch("train", sampler.next_indices(), config.device).first(length)
            try:
                terms, norm = training_step(sae, batch, optimizer, config)
            except FloatingPointError as error:
                raise UserError(
                    f"Training of {sae.name} stopped at step {step + 1}: {error}; lower lr (now "
                    f"{lr:.3g}) or check the store; the last checkpoint in {directory} is kept."
                ) from None

            done = step + 1
            extra = {}
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
            if done % config.checkpoint_every == 0 or done == config.steps:
                log.flush()
                where = checkpoint.Progress(done, log.tell())
                checkpoint.write(directory, run, where, sae, optimizer, sampler)
                seconds = {"from": start, "to": done, "seconds": time.perf_counter() - began}
                with open(directory / "timing.jsonl", "a", encoding="utf-8") as timing:
                    timing.write(json.dumps(seconds) + "\n")
    return row or checkpoint.last_row(directory)


def check_fit(sae: SAE, store, config: TrainConfig) -> None:
    """Raise one sentence if SAE, store, configuration and machine do not go together."""
    if config.device != "cpu" and not torch.cuda.is_available():
        raise UserError(
            f"device={config.device!r} was asked for, but torch sees no GPU here: use device='cpu'."
        )
    if sae.cfg.d_in != store.d_model:
        raise UserError(
            f"The SAE reads d_in={sae.cfg.d_in}, the store holds d_model={store.d_model}: "
            f"build the SAE with d_in={store.d_model}."
        )
    known = sae.meta.get("fingerprint", store.fingerprint)
    if known != store.fingerprint:
        raise CheckpointError(
            f"The SAE comes from world {sae.meta.get('world')!r} (fingerprint {known[:12]}), the "
            f"store from {store.world!r} ({store.fingerprint[:12]}): use the store it came from."
        )
    length = seen_positions(config, store.seq_len)
    size, n_train = config.batch_tokens // length, store.n_sequences("train")
    if not 1 <= size <= n_train:
        raise UserError(
            f"batch_tokens={config.batch_tokens} makes {size} sequences of {length} tokens "
            f"a batch, and the store has {n_train}: choose between 1 and {n_train} sequences."
        )
    if config.eval_every and store.n_sequences("test") == 0:
        raise UserError("The store has no test sequences: harvest some, or set eval_every=0.")


def finished(directory: Path, run: dict, device: str) -> TrainResult:
    """The result of a run that ended before, if it is the same run."""
    sae = saes.load(directory / "sae", device)
    checkpoint.check_identity(sae.meta.get("run", {}), run, directory / "sae")
    checkpoint.clear(directory)
    return TrainResult(sae, checkpoint.last_row(directory))
