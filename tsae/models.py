"""Language models through TransformerBridge: boot, read the residual stream, edit it.

Runs on transformer_lens 3.9 and 4.x. "The residual at layer l" is always the output of block l,
hook ``blocks.{l}.hook_out`` (0 ≤ l < n_layers). Nothing here keeps a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import torch
from torch import Tensor

from tsae import model_folders
from tsae.errors import WorldError
from tsae.kernels.linear import fast_linear

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from tsae.sequences import TextSource

P = ParamSpec("P")
Edit = Callable[[Tensor], Tensor]


def _inference(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """``function`` without gradients and with the faster dense layers."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.no_grad(), fast_linear():
            return function(*args, **kwargs)

    return run


class _Residual(Exception):
    """Carries the residual out of a forward pass, so that the unembedding is never computed."""

    def __init__(self, x_BTD: Tensor) -> None:
        self.x_BTD = x_BTD


def boot(directory: str | Path, device: str = "cpu") -> TransformerBridge:
    """The Hugging Face causal language model saved in ``directory``, bridged; no hub is asked.

    In eval mode, fp32, without gradients or a key–value cache. Weights come from safetensors only.
    Raises :class:`WorldError` when files are missing, cut short, or lack weights of the model, and
    for a model that :func:`tsae.model_folders.check` refuses or transformer_lens does not know.
    """
    from safetensors import SafetensorError
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    directory = Path(directory)
    config = model_folders.check(directory)
    tokenizer = model_folders.load_tokenizer(directory)
    try:
        with model_folders.quiet():
            hf_model, report = AutoModelForCausalLM.from_pretrained(
                directory,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="eager",  # what the bridge needs for its attention hooks
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WorldError(
            f"The model in {directory} cannot be read ({reason}); "
            "give a folder with config.json and whole .safetensors weights."
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise WorldError(
            f"The weights in {directory} lack {len(missing)} tensors of the model, "
            f"{missing[0]} first; save the whole model again."
        )
    hf_model.config.use_cache = False
    hf_model.to(device)
    try:
        with model_folders.no_installs():
            parts = {"hf_model": hf_model, "tokenizer": tokenizer, "dtype": torch.float32}
            model = TransformerBridge.boot_transformers(str(directory), device=device, **parts)
    except (ValueError, KeyError, AttributeError, ImportError) as error:
        raise WorldError(
            f"transformer_lens knows no model of type {config.model_type} "
            f"({' '.join(str(error).split())[:120]}); give a model of another architecture."
        ) from error
    return model.eval().requires_grad_(False)


def n_layers(model_or_world: TransformerBridge | TextSource) -> int:
    """Number of blocks of a model, or of a world's model."""
    cfg = getattr(model_or_world, "cfg", model_or_world)
    return cfg.n_layers


def check_layer(model_or_world: TransformerBridge | TextSource, layer: int) -> None:
    """Raise :class:`WorldError` unless 0 ≤ ``layer`` < n_layers, saying which layers there are."""
    n = n_layers(model_or_world)
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n:
        cfg = getattr(model_or_world, "cfg", None)
        name = model_or_world.name if cfg is None else Path(str(cfg.model_name)).name
        raise WorldError(f"layer {layer!r} does not exist: {name} has layers 0..{n - 1}.")


def _inputs(model: TransformerBridge, tokens_BT: Tensor) -> Tensor:
    """Tokens as int64 [B,T] on the model's device. Raises ValueError on another shape or dtype."""
    if tokens_BT.ndim != 2 or tokens_BT.is_floating_point():
        raise ValueError(
            f"tokens are {tokens_BT.dtype} of shape {tuple(tokens_BT.shape)}; "
            "allowed are integers of shape [batch, position]"
        )
    return tokens_BT.to(next(model.parameters()).device, torch.int64)


def residual(
    model: TransformerBridge, tokens_BT: Tensor, layer: int, gradient: bool = False
) -> Tensor:
    """x_BTD at the output of block ``layer``; later blocks and the logits are not computed.

    With ``gradient``, one to the weights that ask for it.

    Raises :class:`WorldError` when there is no such layer, ValueError on tokens of a wrong shape.
    """
    check_layer(model, layer)
    tokens_BT = _inputs(model, tokens_BT)

    def leave(x_BTD: Tensor, hook: Any) -> None:
        raise _Residual(x_BTD)

    with torch.set_grad_enabled(gradient), fast_linear():
        if layer + 1 < n_layers(model):
            # What enters the next block; skips the hook bookkeeping.
            return model(tokens_BT, prepend_bos=False, stop_at_layer=layer + 1)
        hooks = [(f"blocks.{layer}.hook_out", leave)]
        try:
            model.run_with_hooks(tokens_BT, fwd_hooks=hooks, return_type=None, prepend_bos=False)
        except _Residual as found:
            return found.x_BTD
    raise WorldError(f"{hooks[0][0]} never fired: this architecture is not supported.")


@_inference
def logits(model: TransformerBridge, tokens_BT: Tensor) -> Tensor:
    """Next-token logits [B,T,V] of the unchanged model."""
    return model(_inputs(model, tokens_BT), return_type="logits", prepend_bos=False)


@_inference
def logits_with(model: TransformerBridge, tokens_BT: Tensor, layer: int, edit: Edit) -> Tensor:
    """Logits [B,T,V] when the residual x_BTD at ``layer`` is replaced by ``edit(x_BTD)``.

    With edit = identity these are :func:`logits`; with edit = an SAE's reconstruction, those of the
    spliced model. Raises :class:`WorldError` when there is no such layer, ValueError when ``edit``
    changes the shape.
    """
    check_layer(model, layer)

    def replace(x_BTD: Tensor, hook: Any) -> Tensor:
        new_BTD = edit(x_BTD)
        if new_BTD.shape != x_BTD.shape:
            raise ValueError(
                f"edit returned shape {tuple(new_BTD.shape)}; allowed is {tuple(x_BTD.shape)}"
            )
        return new_BTD.to(x_BTD.dtype)

    return model.run_with_hooks(
        _inputs(model, tokens_BT),
        fwd_hooks=[(f"blocks.{layer}.hook_out", replace)],
        return_type="logits",
        prepend_bos=False,
    )


@_inference
def logits_from(model: TransformerBridge, tokens_BT: Tensor, layer: int, x_BTD: Tensor) -> Tensor:
    """Logits [B,T,V] when the residual at ``layer`` is ``x_BTD``; earlier blocks are not run again.

    Equal to :func:`logits_with` with an edit that gives ``x_BTD`` whatever it is given.
    """
    if layer + 1 < n_layers(model):
        return model(x_BTD, start_at_layer=layer + 1, return_type="logits", prepend_bos=False)
    return logits_with(model, tokens_BT, layer, lambda _: x_BTD)
