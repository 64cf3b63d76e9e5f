"""Resampling of dead latents, for SAEs whose dead latents no loss term revives (``relu``)."""

import torch

from tsae.saes.base import SAE


@torch.no_grad()
def resample(sae: SAE, optimizer, batches: list) -> int:
    """Give dead latents a new start; returns how many (Bricken et al. 2023, "Towards
    Monosemanticity", appendix on neuron resampling).

    Each dead latent draws one token, without replacement, with probability proportional to the
    square of its loss |e|^2, where e = x - x_hat [d] is the error (the paper takes x itself; e is
    what the living latents miss). ``W_dec[i] = e/|e|``, ``W_enc[:, i] = 0.2 c e/|e|`` with c the
    mean encoder norm of the living, ``b_enc[i] = 0``, Adam's moments of the three are zeroed, and
    the latent counts as alive. If fewer tokens have an error than latents are dead, the rest wait.
    """
    dead = sae.dead_latents()
    training = sae.training
    sae.eval()
    errors = [(b.x_BTD - sae(b.x_BTD, b.context).x_hat)[b.context.mask_BT] for b in batches]
    sae.train(training)
    error_ND = torch.cat(errors)
    loss_N = error_ND.square().sum(-1).double()
    weights = (loss_N / loss_N.max().clamp_min(1e-30)).square()
    ids = dead.nonzero()[:, 0][: int((weights > 0).sum())]
    if len(ids) == 0:
        return 0
    # Drawn on the CPU: its generator is the one that checkpoints restore bit for bit.
    picks = torch.multinomial(weights.cpu(), len(ids)).to(error_ND.device)
    direction_ND = torch.nn.functional.normalize(error_ND[picks], dim=1)
    living = ~dead if bool((~dead).any()) else dead
    sae.W_dec[ids] = direction_ND
    sae.W_enc[:, ids] = 0.2 * sae.W_enc[:, living].norm(dim=0).mean() * direction_ND.t()
    sae.b_enc[ids] = 0.0
    for parameter, dim in ((sae.W_dec, 0), (sae.W_enc, 1), (sae.b_enc, 0)):
        state = optimizer.state.get(parameter, {})
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment].index_fill_(dim, ids, 0.0)
    sae.idle_tokens[ids] = 0
    return len(ids)


def due(sae: SAE, done: int, config) -> bool:
    """Whether dead latents get a new start after step ``done``."""
    if sae.cfg.act != "relu" or not config.resample_every or not sae.W_dec.requires_grad:
        return False
    return done % config.resample_every == 0 and done <= config.resample_until * config.steps


def pool(store, config, done: int) -> list:
    """The batches that step ``done`` resamples from: a function of seed and step alone."""
    size = config.batch_tokens // store.seq_len
    n = min(config.resample_batches, store.n_sequences("train") // size)
    sampler = store.sampler("train", size, config.seed + done)
    return [store.batch("train", sampler.next_indices(), config.device) for _ in range(n)]
