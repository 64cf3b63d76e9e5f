"""Settings of unlearning: gates × edits, and the size of what they are judged on."""

from dataclasses import dataclass, field, fields

from lab.edits.evidence import EVIDENCE
from lab.edits.gate import SCORES
from tsae.saes.config import require

GATES = ("always", *(f"{score}-{evidence}" for score in SCORES for evidence in EVIDENCE))
RANDOM = "hold-random"
EDITS = (
    *("clamp", "clamp-random", "hold", RANDOM, "ablate", "ablate-random", "chain"),
    *("mean", "mean-random", "hierarchical", "hierarchical-random", "leaves", "leaves-random"),
)
WEIGHTS = ("rmu", "lora")
ATTACKS = ("dilution", "split", "paraphrase", "perturbation", "relearning")


@dataclass(frozen=True)
class UnlearnConfig:
    """The cross of gates and edits, and the size of what it is judged on."""

    gates: tuple[str, ...] = ("always", "share-codes", "ema-codes", "cusum-codes", "cusum-residual")
    """When: always, or SCORE-EVIDENCE (:mod:`lab.edits.gate`, :mod:`lab.edits.evidence`)."""
    edits: tuple[str, ...] = ("clamp", "hold", "mean", "mean-random")
    """What: clamp, hold (that sets silent latents too), ablate, chain, mean (direction from retained
    to forget text), hierarchical (children of parents), leaves (as many latents, chosen and held to
    a threshold alike); each with -random latents, direction or parents. hold-random always joins."""
    weights: tuple[str, ...] = ()
    """Baselines that change weights: rmu, lora."""
    strengths: tuple[float, ...] = (25, 50, 100, 200)
    """m, ascending, in per cent of the residual's norm; a sweep ends once retention falls below
    ``stop_below``."""
    stop_below: float = 0.9
    """See ``strengths``."""
    chain_strengths: tuple[float, ...] = ()
    """m of the edit chain where the energy is not matched: 100 β; empty for ``strengths``."""
    chain_gammas: tuple[float, ...] = (0.7,)
    """Shares of a chain's push that are left one token later, one setting each."""
    matched: bool = True
    """Whether an edit's whole shift has the norm that m says; else m is each latent's (SAEBench)."""
    retain_thresholds: tuple[float, ...] = (0.01,)
    """Largest share t of retain tokens at which a chosen latent may fire."""
    n_latents: tuple[int, ...] = (20,)
    """How many of the ranked latents are edited, n; fewer when fewer qualify."""
    false_positive_rates: tuple[float, ...] = (0.01, 0.03)
    """Shares of retained tokens at which a gate may be open, one setting each."""
    group: str | None = None
    """Edit only latents of this group of the SAE; None for all."""
    subjects: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Which subjects are forget and near; all others are far. Empty for what the world says."""
    attacks: tuple[str, ...] = ()
    """Attacks on what was picked: dilution, split, paraphrase, perturbation, relearning."""
    paddings: tuple[int, ...] = (0, 25, 50, 100, 200, 400)
    """Tokens of benign text of the attack dilution."""
    attack_facts: int | None = None
    """Facts asked for under an attack in each neighbourhood; None for all that are asked for."""
    forms: tuple[str, ...] | None = None
    """Forms of questions on which settings are judged, such as ["plain"]; None for all. Attacks use
    the other forms too."""
    text: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Labels and their classes to which the text is cut on which latents are ranked and gates
    calibrated, such as {"theme": ["facts", "quiz"]}; empty for all text."""
    n_facts: int = 100
    """Facts asked for in each neighbourhood, drawn by ``seed``."""
    n_orders: int | None = None
    """Option orders asked for of each fact and form; None for all that the world gives."""
    rank_tokens: int = 60_000
    """Tokens of forget text and of retain text on which latents are ranked and gates calibrated."""
    ce_tokens: int = 8_192
    """Held-out tokens for cross-entropy and the share of edited tokens."""
    batch_size: int = 64
    """Prompts run at once; text is run a quarter as many sequences at once."""
    seed: int = 0
    """Seed of the drawn facts and of everything random."""

    def __post_init__(self) -> None:
        for f in fields(self):  # JSON turns tuples into lists
            if isinstance(value := getattr(self, f.name), list):
                object.__setattr__(self, f.name, tuple(value))
        for name in ("gates", "edits", "strengths", "n_latents", "chain_gammas", *SHARES):
            require(len(getattr(self, name)) > 0, name, getattr(self, name), "not empty")
        for name in ("strengths", "n_latents", "chain_strengths"):
            for value in getattr(self, name):
                require(value > 0, name, value, "above 0")
        for name in (
            "n_facts",
            "rank_tokens",
            "ce_tokens",
            "batch_size",
            "n_orders",
            "attack_facts",
        ):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0")
        for name in SHARES:
            for value in getattr(self, name):
                require(0 <= value < 1, name, value, "in [0, 1)")
        known = {"gates": GATES, "edits": EDITS, "weights": WEIGHTS, "attacks": ATTACKS}
        for name, allowed in known.items():
            for value in getattr(self, name):
                require(value in allowed, name, value, f"of {', '.join(allowed)}")


SHARES = ("retain_thresholds", "false_positive_rates")
