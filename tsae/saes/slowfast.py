r"""F. Slow and fast latents of one dictionary: identity persists, amplitude does not.

    u    = x - b_dec,   e_i[t] = relu(u[t] W_i + b_i)                         evidence of latent i
    m_i  = leaky mean of e_i over the document so far, decay delta of its group
    S[t] = act_g(m[t]) of each slow group g                                   which are on: persists
    z_i  = relu(u a_i + b'_i + c_i m_i) + eps m_i for i in S                  how strongly: per token
    r    = u - z_S W_dec;  the fast latents in rounds on r; all codes corrected together (``rounds``)
    loss = the static one
           + nu InfoNCE(cosine of document memories at t and t + lag; negatives: other documents)
           + alpha FVU of sum_S s_i m_i d_i for the mean of u over the section's other tokens

The slow groups (``document``, ``section``) come first in the dictionary. Of the k active latents a
token, each group has its share; slots it cannot fill go to the last fast round. The encoder is told
where documents start, nothing else; the loss may read given sections, or the next tokens instead
(``target``). Without slow groups this is ``rounds``, and so with one round and no correction the
static SAE exactly. Source: this project.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tsae.kernels import rounds
from tsae.kernels.leaky import LeakySum, leaky_mean
from tsae.kernels.sparse import Codes, rows_to_crow
from tsae.saes import activations
from tsae.saes.base import Encoding, State, Tokens, require
from tsae.saes.config import split_by_shares
from tsae.saes.passages import document_contrast, drawn, next_sum, others_sum
from tsae.saes.registry import register
from tsae.saes.rounds import Found, RoundsConfig, RoundsSAE
from tsae.sequences import DOCUMENT, SECTION, FilledContext

GROUPS = ("document", "section")
TARGETS = ("section", "next")


@dataclass(frozen=True)
class SlowFastConfig(RoundsConfig):
    """The config of ``rounds`` plus the slow groups, their memory and their losses."""

    slow_shares: tuple[float, ...] = (3 / 64, 3 / 32)
    """Shares of the latents in the slow groups: documents, then sections; () for none."""
    slow_k: tuple[float, ...] = (0.21, 0.16)
    """Shares of k of the slow groups; each has one slot at least."""
    decays: tuple[float, ...] = (0.985, 0.85)
    """Decay per token of each slow group's memory."""
    priors: tuple[float, ...] = (8.0, 1.0)
    """Tokens without evidence with which each group's memory of a document begins."""
    learn_decays: bool = False
    """Whether every slow latent learns its own decay from there."""
    floor: float = 0.05
    """eps, the part of its memory that a slow latent shows whatever the token."""
    contrast: float = 0.02
    """nu, the weight of InfoNCE between document memories."""
    contrast_pairs: int = 256
    """Pairs of tokens a step that it compares."""
    longest_lag: int = 32
    """Lags are drawn from 1 to this number of tokens."""
    temperature: float = 0.1
    """Divisor of its cosines."""
    predict: float = 0.05
    """alpha, the weight of the prediction of the passage by the slow latents that are on."""
    predict_tokens: int = 256
    """Tokens a step that it is asked at."""
    target: str = "section"
    """What is predicted: the mean of the section's other tokens, or of the next tokens."""
    horizon: int = 16
    """Number of next tokens, for that target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        n = len(self.slow_shares)
        require(n <= 2, "slow_shares", self.slow_shares, "the shares of at most two groups")
        for field in ("slow_shares", "slow_k"):
            shares = getattr(self, field)[:n]
            ok = len(shares) == n and all(s > 0 for s in shares) and sum(shares) < 1
            require(ok, field, getattr(self, field), f"{n} positive shares of less than 1 in all")
        ok = len(self.decays) >= n and all(0 < decay < 1 for decay in self.decays)
        require(ok, "decays", self.decays, f"{n} numbers between 0 and 1")
        ok = len(self.priors) >= n and all(prior >= 0 for prior in self.priors)
        require(ok, "priors", self.priors, f"{n} numbers of at least 0")
        least = sum(self.slow_ks) + len(self.rounds)
        require(self.k >= least, "k", self.k, f"at least {least}, one for each group and round")
        for field in ("floor", "contrast", "predict"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "at least 0")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        require(self.target in TARGETS, "target", self.target, f"one of {', '.join(TARGETS)}")
        for field in ("contrast_pairs", "longest_lag", "predict_tokens", "horizon"):
            value = getattr(self, field)
            require(isinstance(value, int) and value > 0, field, value, "a whole number above 0")

    @property
    def slow_sizes(self) -> list[int]:
        """Latents of each slow group."""
        return [max(1, round(share * self.d_sae)) for share in self.slow_shares]

    @property
    def slow_ks(self) -> list[int]:
        """Slots of each slow group."""
        shares = self.slow_k[: len(self.slow_shares)]
        return [max(1, round(share * self.k)) for share in shares]


class SlowPart(NamedTuple):
    """The slow latents of a batch: ``m_NS`` their memory, ``on_NS`` bool which are on."""

    m_NS: Tensor
    on_NS: Tensor


@register("slowfast", SlowFastConfig)
class SlowFastSAE(RoundsSAE):
    """The memory, the groups and the losses of the module's equations."""

    cfg: SlowFastConfig
    prior_S: Tensor
    decay_logit: Tensor

    def __init__(self, cfg: SlowFastConfig):
        super().__init__(cfg)
        sizes = torch.tensor(cfg.slow_sizes, dtype=torch.long)
        delta = torch.repeat_interleave(torch.tensor(cfg.decays[: len(sizes)]), sizes)
        prior = torch.repeat_interleave(torch.tensor(cfg.priors[: len(sizes)]), sizes)
        self.register_buffer("prior_S", prior, persistent=False)
        if cfg.learn_decays:
            self.decay_logit = nn.Parameter(torch.logit(delta))
        else:
            self.register_buffer("decay_logit", torch.logit(delta))
        if cfg.slow_shares:
            Fs = self.n_slow
            self.W_amp = nn.Parameter(0.5 * self.W_dec.detach()[:Fs])
            self.b_amp = nn.Parameter(torch.zeros(Fs))
            self.c_amp = nn.Parameter(torch.full((Fs,), 0.5))
            if cfg.predict > 0:
                self.scale_predict = nn.Parameter(torch.ones(Fs))

    @property
    def n_slow(self) -> int:
        """Latents of all slow groups, the first ones of the dictionary."""
        return sum(self.cfg.slow_sizes)

    @property
    def n_fast(self) -> int:
        return self.cfg.d_sae - self.n_slow

    @property
    def is_static(self) -> bool:
        return super().is_static and not self.cfg.slow_shares

    def make_activation(self) -> nn.Module:
        cfg = self.cfg
        if not cfg.slow_shares:
            return super().make_activation()
        fast_ks = split_by_shares(cfg.k - sum(cfg.slow_ks), cfg.rounds)
        ks, sizes = cfg.slow_ks + fast_ks, cfg.slow_sizes + [self.n_fast] * len(fast_ks)
        each = zip(ks, sizes, strict=True)
        return activations.Grouped(
            [activations.make(cfg.act, min(k, n), n, cfg) for k, n in each], sizes
        )

    @property
    def groups(self) -> dict[str, Tensor]:
        """Latent ids of the ``document``, ``section`` and ``fast`` latents (``all`` if one)."""
        ids = torch.arange(self.cfg.d_sae, device=self.W_dec.device)
        sizes = self.cfg.slow_sizes
        if not sizes:
            return {"all": ids}
        names = (*GROUPS[: len(sizes)], "fast")
        return dict(zip(names, ids.split([*sizes, self.n_fast]), strict=True))

    @property
    def looks_back(self) -> bool:
        return bool(self.cfg.slow_shares)

    @property
    def pairs_tokens(self) -> bool:
        """True with InfoNCE, whose negatives are other sequences' tokens."""
        return bool(self.cfg.slow_shares) and self.cfg.contrast > 0

    # ---- encoding -------------------------------------------------------------------------

    def detached(
        self, x_BTD: Tensor, u_ND: Tensor, W_DF: Tensor, b_F: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``u`` and ``b``, the same in value, with the short way to the gradient of b_dec that
        :meth:`Tokens.pair` takes."""
        if x_BTD.requires_grad or not torch.is_grad_enabled():
            return u_ND, b_F
        return u_ND.detach(), b_F - (self.b_dec - self.b_dec.detach()) @ W_DF.detach()

    def memory(
        self,
        x_BTD: Tensor,
        u_ND: Tensor,
        W_DS: Tensor,
        context: FilledContext,
        before: LeakySum | None,
    ) -> tuple[Tensor, LeakySum]:
        """``m`` [N, Fs], and what is remembered after the last token."""
        u_ND, b_S = self.detached(x_BTD, u_ND, W_DS, self.b_enc[: self.n_slow])
        e_BTS = torch.addmm(b_S, u_ND, W_DS).relu().unflatten(0, x_BTD.shape[:2])
        delta_S, keep_BT = torch.sigmoid(self.decay_logit), context.boundary_BT < DOCUMENT
        m_BTS, after = leaky_mean(e_BTS, delta_S, keep_BT, context.mask_BT, before, self.prior_S)
        return m_BTS.flatten(0, 1), after

    def found(self, tokens: Tokens, state: State | None) -> Found:
        """As of ``rounds``; the first pre-activation is the memory, which a stream keeps."""
        if not self.cfg.slow_shares:
            return super().found(tokens, state)
        x_BTD, u_ND, mask_N = tokens.x_BTD, tokens.u_BTD.flatten(0, 1), tokens.mask_N
        # By latent, once: the gradients of all rounds read it so.
        W_FD = self.W_enc.t().contiguous()
        W_DS, W_DG = (W.t() for W in W_FD.split([self.n_slow, self.n_fast]))
        before = None if state is None else state.get("memory")
        m_NS, after = self.memory(x_BTD, u_ND, W_DS, tokens.context, before)
        if state is not None:
            state["memory"] = after
        if self.dense_path:
            return self.dense_codes(u_ND, m_NS, W_DG, mask_N)
        cfg = self.cfg
        pattern = self.selected(m_NS, mask_N)
        m = pattern.values
        v_ND, b_S = self.detached(x_BTD, u_ND, self.W_amp.t(), self.b_amp)
        amplitude = rounds.projected(pattern, v_ND, self.W_amp)
        amplitude = amplitude + b_S[pattern.cols] + self.c_amp[pattern.cols] * m
        shape = len(u_ND), cfg.d_sae
        slow = pattern._replace(values=amplitude.relu() + cfg.floor * m, shape=shape)
        r_ND = rounds.subtracted(u_ND, slow, self.W_dec)
        spare_N = sum(cfg.slow_ks) * mask_N - pattern.crow.diff()
        fast = self.act.parts[len(cfg.slow_sizes) :]
        parts, pres, r_ND = rounds.sparse_rounds(
            r_ND, W_DG, self.W_dec, self.biases(), fast, mask_N, spare_N
        )
        codes = rounds.merged([slow, *parts])
        if cfg.correct:
            codes = rounds.corrected(codes, r_ND, self.W_dec, self.eta)
        on_NS = torch.zeros_like(m_NS, dtype=torch.bool)
        on_NS[pattern.rows, pattern.cols] = True
        return Found(codes, [m_NS, *pres], {"slow": SlowPart(m_NS, on_NS)})

    def selected(self, m_NS: Tensor, mask_N: Tensor) -> Codes:
        """``S``: the memories of the slow latents that are on, with their gradient."""
        rows, cols, start = [], [], 0
        for act, n in zip(self.act.parts, self.cfg.slow_sizes, strict=False):
            r, c, _ = act.select(m_NS.detach()[:, start : start + n].contiguous(), mask_N)
            rows.append(r)
            cols.append(c + start)
            start += n
        place = torch.cat(rows) * m_NS.shape[1] + torch.cat(cols)
        place = place[m_NS.detach().view(-1)[place] > 0].sort().values
        m, r = m_NS.flatten().gather(0, place), place // m_NS.shape[1]
        crow = rows_to_crow(torch.bincount(r, minlength=len(m_NS)))
        return Codes(m, r, place % m_NS.shape[1], crow, (len(m_NS), m_NS.shape[1]))

    def dense_codes(self, u_ND: Tensor, m_NS: Tensor, W_DG: Tensor, mask_N: Tensor) -> Found:
        """:meth:`found` in plain dense products, for the activations that have no sparse ones."""
        cfg, Fs, n = self.cfg, self.n_slow, len(self.cfg.slow_sizes)
        on = []
        for act, m_NG in zip(self.act.parts, m_NS.split(cfg.slow_sizes, 1), strict=False):
            kept_NG = (act(m_NG.detach(), mask_N) > 0).to(m_NG.dtype)
            if cfg.act == "jumprelu":  # the threshold's gradient goes through the step
                step_NG = act.step(m_NG.detach())
                kept_NG = kept_NG + mask_N[:, None] * (step_NG - step_NG.detach())
            on.append(kept_NG)
        on_NS = torch.cat(on, 1)
        amplitude = u_ND @ self.W_amp.t() + self.b_amp + self.c_amp * m_NS
        z_NS = (amplitude.relu() + cfg.floor * m_NS) * on_NS
        r_ND = u_ND - z_NS @ self.W_dec[:Fs]
        spare_N = sum(cfg.slow_ks) * mask_N - on_NS.detach().long().sum(1)
        z_NF, pres, r_ND = rounds.dense_rounds(
            r_ND, W_DG, self.W_dec, self.biases(), self.act.parts[n:], mask_N, spare_N
        )  # fmt: skip
        z_NF = torch.cat([z_NS, z_NF], 1)
        if cfg.correct:
            z_NF = rounds.dense_corrected(z_NF, r_ND, self.W_dec, self.eta)
        return Found(z_NF, [m_NS, *pres], {"slow": SlowPart(m_NS, on_NS.detach() > 0)})

    # ---- loss -----------------------------------------------------------------------------

    def own_terms(self, x_BTD: Tensor, enc: Encoding) -> dict[str, Tensor]:
        """``contrast`` and ``predict``, weighted."""
        cfg, terms = self.cfg, {}
        if cfg.slow_shares and cfg.contrast > 0:
            m_NG = enc.aux["slow"].m_NS[:, : cfg.slow_sizes[0]]
            terms["contrast"] = cfg.contrast * document_contrast(
                m_NG, enc.context, cfg.contrast_pairs, cfg.longest_lag, cfg.temperature
            )
        if cfg.slow_shares and cfg.predict > 0:
            slow, u_ND = enc.aux["slow"], enc.target.detach()
            terms["predict"] = cfg.predict * self.unpredicted(slow, u_ND, enc.context)
        return terms

    def unpredicted(self, slow: SlowPart, u_ND: Tensor, context: FilledContext) -> Tensor:
        """Share of the passage's mean that ``sum_S s_i m_i d_i`` does not explain, at a few tokens."""
        if self.cfg.target == "section":
            total_ND, n_N = others_sum(u_ND, context, SECTION)
        else:
            total_ND, n_N = next_sum(u_ND, context, self.cfg.horizon)
        rows = drawn(context.mask_BT.flatten() & (n_N > 0), self.cfg.predict_tokens)
        target_PD = total_ND[rows] / n_N[rows, None]
        m_PS = slow.m_NS[rows] * slow.on_NS[rows] * self.scale_predict
        missed = (m_PS @ self.W_dec[: self.n_slow] - target_PD).square().sum()
        return missed / target_PD.square().sum().clamp_min(1e-8)
