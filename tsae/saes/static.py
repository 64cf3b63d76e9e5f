"""The static SAEs: one token at a time, four activations.

``l1``: ReLU with an L1 penalty (Bricken et al. 2023; Cunningham et al. 2023, arXiv 2309.08600).
``topk``: TopK with AuxK (Gao et al. 2024, arXiv 2406.04093). ``batchtopk``: Bussmann et al. 2024,
arXiv 2412.06410. ``jumprelu``: Rajamanoharan et al. 2024, arXiv 2407.14435, with an L0
penalty. With ``match_l0`` the weight of the L1 or L0 penalty is steered until the batch L0 is k.
"""

from tsae.saes.base import SAE, SAEConfig
from tsae.saes.registry import register


@register("l1", SAEConfig, act="relu")
@register("topk", SAEConfig, act="topk")
@register("batchtopk", SAEConfig, act="batchtopk")
@register("jumprelu", SAEConfig, act="jumprelu")
class StaticSAE(SAE):
    """``z = act((x - b_dec) W_enc + b_enc)``, ``x_hat = z W_dec + b_dec``; see the base class."""
