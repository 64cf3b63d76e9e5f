"""What the tests of edits and of unlearning share: an SAE whose latents are axes, and its texts."""

import torch

from lab.edits.ranking import Text
from tsae import saes
from tsae.saes import SequenceContext


def identity(d=4):
    """z = relu(x), x_hat = z: each latent is one axis; negative x is the error term."""
    sae = saes.build("l1", d_in=d, d_sae=d, k=1).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    return sae


def context(mask, boundary=None):
    """From nested lists; no boundary by default."""
    mask_BT = torch.as_tensor(mask, dtype=torch.bool)
    boundary_BT = torch.zeros_like(mask_BT, dtype=torch.uint8)
    if boundary is not None:
        boundary_BT = torch.as_tensor(boundary, dtype=torch.uint8)
    return SequenceContext(mask_BT, boundary_BT)


def text(rows, keep=None):
    """One sequence from rows of codes; all valid, all kept unless told."""
    x = torch.as_tensor(rows, dtype=torch.float32)[None]
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    keep_BT = mask if keep is None else torch.tensor([keep], dtype=torch.bool)
    return Text(x, SequenceContext(mask, None), keep_BT)
