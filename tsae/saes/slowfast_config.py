"""What ``slowfast`` can be told."""

from dataclasses import dataclass

from tsae.saes.config import require, split_by_shares
from tsae.saes.rounds import RoundsConfig

TARGETS = ("section", "next")


@dataclass(frozen=True)
class SlowFastConfig(RoundsConfig):
    """The config of ``rounds`` plus the slow groups, their memory and their losses."""

    slow_shares: tuple[float, ...] = (3 / 64, 3 / 32)
    """Shares of the latents in the slow groups: documents, then sections; () for none."""
    slow_k: tuple[float, ...] = (0.21, 0.16)
    """Shares of k that the slow groups have on average; each has one slot at least."""
    most: tuple[float, ...] = (1 / 3, 1 / 4)
    """Shares of k that each may take at one token, under topk: its slots are then given out over the
    tokens of a batch, where memories are largest; the fast latents have the rest of a token's k. As
    far as the last round keeps one; at ``slow_k``, as many at every token."""
    decays: tuple[float, ...] = (0.985, 0.85)
    """Decay per token of each slow group's memory."""
    priors: tuple[float, ...] = (8.0, 1.0)
    """Tokens without evidence with which each group's memory of a document begins."""
    learn_decays: bool = False
    """Whether every slow latent learns its own decay from there."""
    hold: float = 1.0
    """rho: a slow latent that is on leaves only for one whose memory, times rho, exceeds its own. At
    1 the act chooses; below, each group has its slots at every token, whatever the act."""
    bound: float = 0.7
    """kappa: a slow latent's value is its memory's, give or take this share of it."""
    contrast: float = 0.01
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
    blocks: tuple[float, ...] = ()
    """Shares of the fast latents in nested blocks, of which each prefix, and the slow latents alone,
    reconstruct too; () for none."""
    target: str = "section"
    """What is predicted: the mean of the section's other tokens, or of the next tokens."""
    horizon: int = 16
    """Number of next tokens, for that target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        n = len(self.slow_shares)
        require(n <= 2, "slow_shares", self.slow_shares, "the shares of at most two groups")
        for field in ("slow_shares", "slow_k", "most"):
            shares = getattr(self, field)[:n]
            ok = len(shares) == n and all(s > 0 for s in shares) and sum(shares) < 1
            require(ok, field, getattr(self, field), f"{n} positive shares of less than 1 in all")
        ok = len(self.decays) >= n and all(0 < decay < 1 for decay in self.decays)
        require(ok, "decays", self.decays, f"{n} numbers between 0 and 1")
        ok = len(self.priors) >= n and all(prior >= 0 for prior in self.priors)
        require(ok, "priors", self.priors, f"{n} numbers of at least 0")
        least = sum(self.slow_ks) + len(self.rounds)
        require(self.k >= least, "k", self.k, f"at least {least}, one for each group and round")
        require(0 < self.hold <= 1, "hold", self.hold, "above 0, and 1 at most")
        require(0 <= self.bound < 1, "bound", self.bound, "at least 0, and below 1")
        for field in ("contrast", "predict"):
            require(getattr(self, field) >= 0, field, getattr(self, field), "at least 0")
        ok = not self.blocks or (min(self.blocks) > 0 and abs(sum(self.blocks) - 1) < 1e-6)
        require(ok, "blocks", self.blocks, "positive shares that sum to 1, or ()")
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

    @property
    def round_ks(self) -> list[int]:
        """Slots of each round of fast latents, on average over the tokens."""
        return split_by_shares(self.k - sum(self.slow_ks), self.rounds)

    @property
    def slow_most(self) -> list[int]:
        """Most slots of each slow group at one token."""
        if self.act != "topk" or self.hold < 1:
            return self.slow_ks
        most, spare = [], self.round_ks[-1] - 1
        for k, share in zip(self.slow_ks, self.most, strict=False):
            extra = min(max(0, round(share * self.k) - k), spare)
            most.append(k + extra)
            spare -= extra
        return most

    @property
    def fast_ks(self) -> list[int]:
        """Slots of each round at every token; the last one also takes what slow groups leave of
        their most."""
        *first, last = self.round_ks
        return [*first, last - sum(self.slow_most) + sum(self.slow_ks)]
