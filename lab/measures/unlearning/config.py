"""Settings of unlearning: the grid of edits and the size of what it is judged on."""

from dataclasses import dataclass, field, fields

from lab.edits import ChainConfig, DetectorConfig
from lab.measures.unlearning.attacks import ATTACKS
from tsae.saes.base import require

LEVELS = ("hierarchical", "leaves")
STRATEGIES = (
    *("clamp", "adaptive", "hold", "probe", "probe-random", "chain", "random"),
    *LEVELS,
)
N_CANDIDATES = 256  # leaves, by how much more often they fire on forget text, that are ranked


@dataclass(frozen=True)
class UnlearnConfig:
    """The grid of settings and the size of what it is judged on."""

    retain_thresholds: tuple[float, ...] = (0.001, 0.01)
    """Largest share t of retain tokens at which a chosen latent may fire."""
    n_latents: tuple[int, ...] = (10, 20)
    """How many of the ranked latents are edited, n; fewer when fewer qualify."""
    multipliers: tuple[float, ...] = (25, 50, 100, 200)
    """The multiplier m: per cent of a residual's norm."""
    strategies: tuple[str, ...] = STRATEGIES
    """Which edits: clamp; chain; adaptive (a clamp while the score is high); hold (that sets silent
    latents too); probe (hold, with the logistic evidence); random (a clamp of random latents of
    like frequency) and probe-random (probe that sets those); for SAEs of two levels, hierarchical
    (children of parents) and leaves (as many latents, chosen and gated in the same way)."""
    relative: bool = False
    """Whether m is taken of each token's own norm, not of the root mean square norm."""
    group: str | None = None
    """Edit only latents of this group of the SAE; None for all."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    """Score and calibration of the strategies adaptive and hold."""
    probe: DetectorConfig = field(
        default_factory=lambda: DetectorConfig(
            evidence="logistic", hold=True, decay=0.5, false_positive_rate=0.01
        )
    )
    """The same of the strategies probe and probe-random."""
    chain: ChainConfig = field(default_factory=ChainConfig)
    """How chains are found and followed by the strategy chain."""
    chain_multipliers: tuple[float, ...] = (100, 400, 1600)
    """The multiplier of the strategy chain: per cent of what C expects; another unit than m's."""
    chain_gammas: tuple[float, ...] = ()
    """Shares gamma to try in place of the chain's own, one setting each; empty for its own alone."""
    false_positive_rates: tuple[float, ...] = (0.01, 0.02, 0.03)
    """Rates to which the detector of probe and probe-random is set, one setting each."""
    attacks: tuple[str, ...] = ()
    """Attacks on the best setting of each strategy: dilution, split, paraphrase."""
    attack_facts: int | None = None
    """Facts asked for under an attack in each neighbourhood; None for all that are asked for."""
    forms: tuple[str, ...] | None = None
    """Forms of questions on which settings are judged, such as ["plain"]; None for all. Attacks use
    the other forms too."""
    text: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Labels and their classes to which the text is cut on which latents are ranked and detectors
    calibrated, such as {"theme": ["facts", "quiz"]}; empty for all text."""
    n_facts: int = 100
    """Facts asked for in each neighbourhood, drawn by ``seed``."""
    n_orders: int | None = None
    """Option orders asked for of each fact and form; None for all that the world gives."""
    rank_tokens: int = 60_000
    """Tokens of forget text and of retain text on which latents are ranked and calibrated."""
    ce_tokens: int = 8_192
    """Held-out tokens for cross-entropy and the share of edited tokens."""
    batch_size: int = 64
    """Prompts run at once; text is run a quarter as many sequences at once."""
    seed: int = 0
    """Seed of the drawn facts and of the random latents."""

    def __post_init__(self) -> None:
        for f in fields(self):  # JSON turns tuples into lists
            if isinstance(getattr(self, f.name), list):
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))
        kinds = {"detector": DetectorConfig, "probe": DetectorConfig, "chain": ChainConfig}
        for name, kind in kinds.items():
            if isinstance(getattr(self, name), dict):
                object.__setattr__(self, name, kind(**getattr(self, name)))
        for name in (
            "retain_thresholds",
            "n_latents",
            "multipliers",
            "chain_multipliers",
            "strategies",
            "false_positive_rates",
        ):
            require(len(getattr(self, name)) > 0, name, getattr(self, name), "not empty")
        for name in ("n_latents", "multipliers", "chain_multipliers"):
            require(min(getattr(self, name)) > 0, name, getattr(self, name), "above 0")
        for t in self.retain_thresholds:
            require(0 <= t <= 1, "retain_thresholds", t, "in [0, 1]")
        for s in self.strategies:
            require(s in STRATEGIES, "strategies", s, f"of {', '.join(STRATEGIES)}")
        for attack in self.attacks:
            require(attack in ATTACKS, "attacks", attack, f"of {', '.join(ATTACKS)}")
        for name in ("n_facts", "rank_tokens", "ce_tokens", "batch_size"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("n_orders", "attack_facts"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0, or None for all")
