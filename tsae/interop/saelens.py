r"""SAELens directories (``cfg.json``, ``sae_weights.safetensors``): 6 written, 5 and 6 read.

The store gives an SAE x = s · raw; SAELens gives one the raw residual. Every activation here scales
with its input (act(s · pre) = s · act(pre) once thresholds are scaled too), so the change of units is

    b_enc, b_dec, thresholds  /  s  on the way out,  · s  on the way in;   W_enc, W_dec as they are

and codes come out in units of the raw residual, z_raw = z / s, on a dictionary of unit norm.

Static SAEs of every activation are exported exactly (batchtopk as jumprelu with its inference
threshold, as SAELens does itself). A temporal encoder is *approximated* by its static part,
act((x − b_dec) W_enc + b_enc); ``conv`` by its whole window read at the current token,
W = W_enc + Σ_j W_j, as if the residual had stood still. The approximation is named in ``cfg.json``
under metadata.tsae_approximation and is null where there is none.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsae.errors import CheckpointError
from tsae.files import atomic, read_json, write_json
from tsae.saes import SAE, activations, build
from tsae.saes.conv import ConvSAE
from tsae.saes.rounds import RoundsSAE
from tsae.saes.shares import Grouped

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAELENS = "6.0.0"
"""The version whose format this is; later ones read it."""
ARCHITECTURES = {"standard": "l1", "topk": "topk", "jumprelu": "jumprelu", "batchtopk": "batchtopk"}
_ROWS_AT_ONCE = 64


@torch.no_grad()
def folded(sae: SAE) -> tuple[Tensor, str | None]:
    """W_enc [d, F] that reads the current token alone, and what is lost by it (None: nothing)."""
    if isinstance(sae, ConvSAE) and sae.cfg.window > 1:
        rows = []
        # Linear on sequences that stand still, so the basis says all of it.
        for x_ND in torch.eye(sae.cfg.d_in, device=sae.W_enc.device).split(_ROWS_AT_ONCE):
            x_NWD = (x_ND + sae.b_dec)[:, None].expand(-1, sae.cfg.window, -1)
            rows.append(sae(x_NWD).pre[:, -1] - sae.b_enc)
        lost = f"the window of {sae.cfg.window} tokens is read at the current token alone"
        return torch.cat(rows), lost
    W_enc = sae.W_enc.detach().clone()
    if not sae.looks_back and type(sae).encoding is SAE.encoding:
        return W_enc, None
    if isinstance(sae, RoundsSAE):
        return W_enc, "one round of selection is kept, without memory, later rounds and correction"
    return W_enc, "only the static part is kept: what other tokens add is left out"


def thresholds(act: torch.nn.Module, n_latents: int) -> Tensor | None:
    """The value [F] that each latent's pre-activation must exceed; None under topk and relu."""
    if isinstance(act, Grouped):
        parts = [thresholds(a, n) for a, n in zip(act.parts, act.sizes, strict=True)]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    if isinstance(act, activations.BatchTopK):
        return act.threshold.detach().clamp_min(0.0).expand(n_latents).clone()
    if isinstance(act, activations.JumpReLU):
        return act.log_threshold.detach().exp()
    return None


def save_saelens(sae: SAE, directory: str | Path, *, model_name: str | None = None) -> Path:
    """Write ``sae`` as SAELens reads it; ``SAE.load_from_disk(directory)`` there gives it back.

    ``model_name`` is what SAELens calls the model; by default the world's name. The scale, the
    layer and the world are those of the store that ``sae`` was trained on (``sae.meta``); without
    one the scale is 1. Raises ValueError for an SAE in training mode.
    """
    if sae.training:
        raise ValueError("sae.training is True; allowed is an SAE in eval mode, call sae.eval()")
    scale, layer = float(sae.meta.get("scale", 1.0)), int(sae.meta.get("layer", 0))
    F = sae.cfg.d_sae
    W_enc, lost = folded(sae)
    bars_F = thresholds(sae.act, F)
    bars_F = None if bars_F is None else bars_F[:F]  # those of a first round, where there are more
    config: dict[str, Any] = {
        "architecture": "standard",
        "d_in": sae.cfg.d_in,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if bars_F is not None:
        config["architecture"] = "jumprelu"
    elif sae.cfg.act == "topk":
        config |= {"architecture": "topk", "k": sae.cfg.k, "rescale_acts_by_decoder_norm": False}
        if not isinstance(sae.act, activations.TopK):
            shares = "groups do not reserve their shares of k"
            lost = shares if lost is None else f"{lost}; {shares}"
    config["metadata"] = {
        "sae_lens_version": SAELENS,
        "sae_lens_training_version": None,
        "model_name": model_name or sae.meta.get("world"),
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "hook_head_index": None,
        "prepend_bos": True,
        "context_size": None,
        "tsae_variant": getattr(sae, "name", None),
        "tsae_k": sae.cfg.k,
        "tsae_scale": scale,
        "tsae_approximation": lost,
    }
    tensors = {
        "W_enc": W_enc,
        "b_enc": sae.b_enc.detach() / scale,
        "W_dec": sae.W_dec.detach(),
        "b_dec": sae.b_dec.detach() / scale,
    }
    if bars_F is not None:
        tensors["threshold"] = bars_F / scale
    directory = Path(directory)
    with atomic(directory) as unfinished:
        unfinished.mkdir()
        host = {name: value.float().cpu().contiguous() for name, value in tensors.items()}
        save_file(host, unfinished / WEIGHTS)
        write_json(unfinished / CONFIG, config)
    return directory


def load_saelens(directory: str | Path, store: Any = None) -> SAE:
    """The SAE in a SAELens directory, in eval mode: a teacher, or a baseline for the evaluation.

    standard, topk, jumprelu and batchtopk become the static variants ``l1``, ``topk``, ``jumprelu``,
    ``batchtopk``. Without ``store`` it reads the raw residual, as it did there. With one it reads
    x = store.scale · raw, gives codes in those units and carries the store's provenance, so that
    the evaluation takes it as if it had been trained on this store; that its layer and model are
    the right ones is the caller's to know. An input without b_dec and decoder norms that rescale
    codes are folded into the weights. Save it with ``sae.save(directory)``.

    Raises :class:`CheckpointError`, in one sentence, for what is missing, cut short, of another
    architecture or activation function, or changes its input in a way that is not folded in.
    """
    directory = Path(directory)
    config = read_json(directory / CONFIG, CheckpointError)
    if not isinstance(config, dict) or not {"architecture", "d_in", "d_sae"} <= set(config):
        raise CheckpointError(f"{directory} is not a SAELens directory: its cfg.json is foreign.")
    kind = config["architecture"]
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise CheckpointError(
            f"{directory} is a {kind!r} SAE; those that can be read are {', '.join(ARCHITECTURES)}."
        )
    _check_input(directory, config)
    try:
        tensors = {name: t.float() for name, t in load_file(directory / WEIGHTS).items()}
        for name, tensor in tensors.items():
            if tensor.isnan().any():
                raise ValueError(f"{name} holds NaN")
        sae = _assembled(kind, config, tensors)
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no {WEIGHTS}; copy it again.") from None
    except (SafetensorError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{directory} cannot be read ({reason}); copy it again.") from None
    sae.meta = {"source": str(directory), "scale": 1.0}
    if store is not None:
        if store.d_model != sae.cfg.d_in:
            raise CheckpointError(
                f"{directory} reads {sae.cfg.d_in} dimensions, the store has {store.d_model}: "
                "give the store of the model and layer that it was trained on."
            )
        _rescale(sae, float(store.scale))
        sae.meta |= {
            "scale": float(store.scale),
            "world": store.world,
            "layer": store.layer,
            "fingerprint": store.fingerprint,
        }
    return sae.eval()


def _check_input(directory: Path, config: dict[str, Any]) -> None:
    """Raise :class:`CheckpointError` if the SAE does not read the residual as it is."""
    norm = config.get("normalize_activations") or "none"
    if norm == "layer_norm":
        raise CheckpointError(
            f"{directory} normalises each token (normalize_activations='layer_norm'), which no "
            "weights can hold: choose an SAE without it."
        )
    shape = config.get("reshape_activations") or "none"
    if (norm, shape) != ("none", "none"):
        raise CheckpointError(
            f"{directory} changes its input (normalize_activations={norm!r}, "
            f"reshape_activations={shape!r}); fold that into its weights with SAELens first."
        )


def _variant(kind: str, config: dict[str, Any]) -> tuple[str, int]:
    """Variant and k. SAELens 5 has topk as ``standard`` with an activation function of that name;
    where k is neither said nor needed, it is 32 (the target that ``match_l0`` steers to)."""
    function = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    if function not in ("relu", "topk"):
        raise ValueError(f"its activation function {function!r} has no like here")
    if kind == "standard" and function == "topk":
        kind = "topk"
    told = {"k": (config.get("metadata") or {}).get("tsae_k")}
    for source in (config.get("activation_fn_kwargs") or {}, config):
        told |= {key: value for key, value in source.items() if key == "k"}
    k = told["k"]
    if k is None and kind not in ("topk", "batchtopk"):
        k = 32
    if not isinstance(k, int | float):
        raise ValueError(f"k={k!r} is not a number")
    return ARCHITECTURES[kind], min(round(k), int(config["d_sae"]))


@torch.no_grad()
def _assembled(kind: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> SAE:
    variant, k = _variant(kind, config)
    sae = build(variant, d_in=int(config["d_in"]), d_sae=int(config["d_sae"]), k=k)
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    b_enc, b_dec = tensors["b_enc"], tensors["b_dec"]
    if config.get("rescale_acts_by_decoder_norm"):
        norm_F = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norm_F, b_enc * norm_F, W_dec / norm_F[:, None]
    if config.get("finetuning_scaling_factor"):  # it scales codes just before they are decoded
        name = "finetuning_scaling_factor"
        W_dec = W_dec * tensors[name if name in tensors else "scaling_factor"][:, None]
    if not config.get("apply_b_dec_to_input", True):
        b_enc = b_enc + b_dec @ W_enc
    for name, value in {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}.items():
        own = getattr(sae, name)
        if own.shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(own.shape)}")
        own.copy_(value)
    if kind == "jumprelu":
        # A threshold of 0 or less is a ReLU, which the smallest positive one equals.
        tiny = torch.finfo(torch.float32).tiny
        sae.act.log_threshold.copy_(tensors["threshold"].clamp_min(tiny).log())
    if kind == "batchtopk":
        sae.act.threshold.copy_(tensors["topk_threshold"])
    return sae


@torch.no_grad()
def _rescale(sae: SAE, scale: float) -> None:
    sae.b_enc.mul_(scale)
    sae.b_dec.mul_(scale)
    if isinstance(sae.act, activations.JumpReLU):
        sae.act.log_threshold.add_(torch.tensor(scale).log())
    if isinstance(sae.act, activations.BatchTopK):
        sae.act.threshold.mul_(scale)
