"""What a training run can be told, and whether SAE, store and machine fit it."""

import dataclasses
import math
from typing import Any

from tsae.errors import CheckpointError, UserError
from tsae.saes.config import require
from tsae.saes.registry import check_device
from tsae.training import distributed


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


def check_fit(sae: Any, store, config: TrainConfig) -> None:
    """Raise one sentence if SAE, store, configuration and machine do not go together."""
    check_device(config.device)
    if sae.cfg.d_in != store.d_model:
        raise UserError(
            f"The SAE reads d_in={sae.cfg.d_in}, the store holds d_model={store.d_model}: "
            f"build the SAE with d_in={store.d_model}."
        )
    meta = sae.teacher().meta if getattr(sae.cfg, "teacher", None) else sae.meta
    known = meta.get("fingerprint", store.fingerprint)
    if known != store.fingerprint:
        raise CheckpointError(
            f"The SAE comes from world {meta.get('world')!r} (fingerprint {known[:12]}), the "
            f"store from {store.world!r} ({store.fingerprint[:12]}): use the store it came from."
        )
    length = seen_positions(config, store.seq_len)
    size, n_train = config.batch_tokens // length, store.n_sequences("train")
    if not 1 <= size <= n_train:
        raise UserError(
            f"batch_tokens={config.batch_tokens} makes {size} sequences of {length} tokens "
            f"a batch, and the store has {n_train}: choose between 1 and {n_train} sequences."
        )
    ranks = distributed.world_size()
    if size % ranks:
        raise UserError(
            f"batch_tokens={config.batch_tokens} makes {size} sequences a batch, which {ranks} "
            "processes cannot share evenly: choose another batch_tokens or number of processes."
        )
    if ranks > 1 and sae.pairs_tokens:
        raise UserError(
            f"The loss of {sae.name} compares tokens of different sequences with each other, so "
            "it cannot be shared by several processes: train it in one."
        )
    if config.eval_every and store.n_sequences("test") == 0:
        raise UserError("The store has no test sequences: harvest some, or set eval_every=0.")
