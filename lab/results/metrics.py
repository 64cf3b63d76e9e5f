"""Every measured quantity once: its name, heading, direction, decimals, words and smallest effect.

Tables, figures, the README and verdicts read :data:`METRICS` and nothing else, so a new measure is
one line here. ``{group}`` in a phrase stands for the row's group (a label or a time scale). What a
metric is not listed for (:func:`metric` then answers with three decimals and no direction) is
measured, yet shown in no table and judged by no verdict.
"""

from dataclasses import dataclass

from tsae.saes.config import require

VERDICTS = ("better", "worse", "equivalent", "undecided")
RETAINED = (0.99, 0.95)
"""Shares of *both* the near and the far questions that an edit has to keep: the bar, and a laxer
second column."""


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    ``better`` is 1 where more is better, −1 where less is, 0 where it is neither. A difference
    whose whole 95% interval is smaller than ``smallest_effect`` is of no interest (0: any is).
    """

    name: str
    head: str
    better: int = 0
    decimals: int = 3
    phrase: str = ""
    smallest_effect: float = 0.0

    def __post_init__(self) -> None:
        require(self.better in (-1, 0, 1), "better", self.better, "-1, 0 or 1")
        require(0 <= self.decimals <= 6, "decimals", self.decimals, "0 to 6")
        require(self.smallest_effect >= 0, "smallest_effect", self.smallest_effect, "0 or more")

    @property
    def arrow(self) -> str:
        """``↑``, ``↓`` or nothing: which way is better."""
        return {1: "↑", -1: "↓", 0: ""}[self.better]


def _table(*rows: tuple) -> dict[str, Metric]:
    metrics = [Metric(*row) for row in rows]
    names = [metric.name for metric in metrics]
    require(len(set(names)) == len(names), "metric names", names, "named once each")
    return dict(zip(names, metrics, strict=True))


METRICS = _table(
    # name, head, better, decimals, phrase, smallest effect
    # Fidelity
    ("l0", "L0", 0, 1, "active latents a token", 0.5),
    ("fve", "FVE", 1, 3, "reconstruction", 0.005),
    ("fvu", "1 − FVE", -1, 3, "reconstruction", 0.005),
    ("cosine", "cosine", 1, 3, "cosine with the residual", 0.005),
    ("ce_delta", "ΔCE", -1, 3, "loss of the spliced model", 0.02),
    ("ce_score", "CE score", 1, 3, "loss of the spliced model", 0.01),
    ("kl_score", "KL score", 1, 3, "divergence of the spliced model", 0.01),
    ("alive", "alive", 1, 3, "latents alive", 0.02),
    ("always_on", "always on", -1, 0, "latents that are always on", 1),
    ("effective_latents", "effective latents", 1, 0, "effective number of latents", 5),
    ("parameters", "parameters", 0, 0, "parameters"),
    ("bits", "bits/token", -1, 1, "bits a token", 1.0),
    ("births", "births/token", -1, 2, "births a token", 0.1),
    ("deaths", "deaths/token", -1, 2, "deaths a token", 0.1),
    # Truth: a known variable from one latent
    ("ap", "AP", 1, 3, "average precision on {group}", 0.02),
    ("auroc", "AUROC", 1, 3, "AUROC on {group}", 0.01),
    ("f1", "F1", 1, 3, "F1 on {group}", 0.02),
    ("ap_constant", "constant", 0, 3, "AP of a constant latent on {group}"),
    ("ap_chance", "chance", 0, 3, "AP of the best latent on shifted labels of {group}"),
    ("ap_probe", "probe on x", 0, 3, "AP of a probe on the residual on {group}"),
    ("ap_probe_ema", "probe on EMA(x)", 0, 3, "AP of a probe on the averaged residual on {group}"),
    ("f1_constant", "constant", 0, 3, "F1 of a constant latent on {group}"),
    ("f1_chance", "chance", 0, 3, "F1 of the best latent on shifted labels of {group}"),
    ("mcc", "MCC", 1, 3, "one-to-one correlation on {group}", 0.02),
    ("lifetime_error", "lifetime error", -1, 3, "error of lifetimes on {group}", 0.05),
    # Time
    ("smoothness", "smoothness", -1, 3, "smoothness", 0.005),
    ("smoothness_normalised", "smoothness / s.d.", -1, 3, "smoothness by latent", 0.02),
    ("mean_dwell", "dwell", 0, 1, "mean stay in tokens", 0.5),
    ("half_life", "half-life", 0, 1, "half-life in tokens", 0.5),
    ("births_per_100", "births/100", 0, 0, "births in 100 tokens", 10),
    ("reactivation_gap", "silence", 0, 1, "silence before a return", 1),
    ("returns", "returns", 0, 3, "share of births that are returns", 0.02),
    ("tss", "TSS", 1, 3, "segmentation by codes", 0.02),
    ("boundary_f1", "boundaries", 1, 3, "boundaries found", 0.02),
    ("temporal_consistency", "consistency", 1, 3, "consistency of lagged dependencies", 0.02),
    ("context_jaccard", "context", 1, 3, "stability of codes when {group}", 0.02),
    ("switch_auroc", "switch AUROC", 1, 3, "detection of document switches", 0.01),
    ("switch_delay", "switch delay", -1, 1, "tokens until a document switch is seen", 1),
    # Probing and use
    ("probe_sparse", "probe", 1, 3, "sparse probing of {group}", 0.02),
    ("detection", "detection", 1, 3, "detection by a lexical explanation", 0.02),
    ("effect_kl", "ΔKL", 0, 3, "effect on the next token", 0.01),
    ("effect_logit", "Δlogit", 0, 3, "logit that the next token loses", 0.05),
    ("scr", "SCR", 1, 3, "spurious-correlation removal", 0.05),
    ("tpp", "TPP", 1, 3, "targeted probe perturbation", 0.02),
    ("absorption", "absorbed", -1, 3, "absorption of parents", 0.02),
    # Succession
    ("chain_ap", "AP", 1, 3, "average precision of arrows", 0.02),
    ("chain_recall", "recall", 1, 3, "recall of arrows", 0.02),
    ("chain_precision", "precision", 1, 3, "precision of arrows", 0.02),
    ("chain_lag_accuracy", "lag right", 1, 3, "lags of arrows", 0.02),
    ("tracker_ap", "AP", 1, 3, "average precision of learned arrows", 0.02),
    # Adaptation
    ("adaptation_theta", "θ", 0, 4, "strength θ", 0.01),
    ("adaptation_beta", "β", 0, 3, "rate β", 0.05),
    ("adaptation_tau", "τ", 0, 3, "exponent τ", 0.05),
    ("position_gap_fve", "position gap", 0, 4, "FVE of late less early positions", 0.005),
    # Composition
    ("composition_r2", "R²", 1, 3, "parents from children", 0.02),
    ("parent_purity", "purity", 1, 3, "purity of parents", 0.02),
    ("parent_purity_excess", "purity*", 1, 3, "purity of parents beyond chance", 0.02),
    ("child_given_parent", "child | parent", 1, 3, "children when their parent fires", 0.02),
    ("level_mean_dwell", "dwell", 0, 1, "mean stay of {group} in tokens", 0.5),
    ("level_ap", "AP", 1, 3, "average precision of {group}", 0.02),
    # Unlearning
    ("isolation_gap", "isolation", 0, 2, "what {group} alone forgets beyond its cost"),
    ("unlearn_forget_accuracy", "forget", -1, 2, "forget accuracy", 0.05),
    ("unlearn_near_accuracy", "near", 1, 2, "near accuracy", 0.02),
    ("unlearn_far_accuracy", "far", 1, 2, "far accuracy", 0.02),
    ("unlearn_retained", "retained", 1, 2, "the lesser of near and far accuracy", 0.02),
    ("unlearn_touched", "touched", -1, 3, "tokens touched", 0.02),
    ("unlearn_retain_touched", "false alarms", -1, 3, "retained tokens touched", 0.02),
    ("unlearn_retain_ce_delta", "ΔCE", -1, 3, "loss on retained text", 0.02),
    ("unlearn_attack_forget_accuracy", "forget", -1, 2, "forget accuracy under attack", 0.05),
)


def metric(name: str) -> Metric:
    """The metric of that name; of one that is not listed, its name, three decimals, no direction."""
    return METRICS.get(name) or Metric(name, name.replace("_", " "), phrase=name.replace("_", " "))


def verdict(name: str, lo: float, hi: float) -> str:
    """``better``, ``worse``, ``equivalent`` or ``undecided``, from the interval of a difference.

    ``equivalent``: the whole interval is smaller than the metric's smallest effect; else ``better``
    or ``worse``: it excludes 0; else ``undecided``. Raises ``ValueError`` for a metric in which
    neither more nor less is better.
    """
    found = metric(name)
    require(found.better != 0, "better", found.better, f"1 or -1 for a verdict on {name}")
    if max(abs(lo), abs(hi)) < found.smallest_effect:
        return "equivalent"
    if lo <= 0 <= hi:
        return "undecided"
    return "better" if (lo > 0) == (found.better > 0) else "worse"
