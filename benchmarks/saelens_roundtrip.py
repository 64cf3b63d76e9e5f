"""SAEs to SAELens and back, checked with SAELens itself; run it with the peers' Python.

    PEERS_PYTHON benchmarks/saelens_roundtrip.py

*Out*: our SAEs, written by ``save_saelens``, opened by ``sae_lens.SAE.load_from_disk``; codes and
reconstructions of the same raw residuals, then written again by SAELens and read by
``load_saelens``. Of a temporal encoder goes out what ``cfg.json`` says (its static part, or the
window read as if the residual stood still), and that is compared; *moving* is how far it then is
from the encoder on sequences that move, |z − z_ours| / |z_ours|, with random temporal weights.
*In*: SAEs that SAELens built and trained for some steps, written by it and read by
``load_saelens``. Differences are the largest |difference| over the largest |code|; bar 1e-5.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

D, F, K, SCALE, LENGTH = 64, 256, 8, 0.3, 32
OUT = {
    "l1": {},
    "topk": {},
    "batchtopk": {},
    "jumprelu": {},
    "conv, window 1, batchtopk": {"act": "batchtopk", "window": 1},
    "conv, window 4, relu": {"act": "relu", "window": 4, "group_shares": (1.0,), "lag_rank": 8},
    "lstm": {},
    "glta": {},
    "predictive": {},
}
OF_ALL = ("W_enc", "W_dec", "b_enc", "b_dec")
IN = ("standard", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk")


def residuals(n: int, seed: int = 0) -> torch.Tensor:
    """[n, LENGTH, D] raw residuals: sparse features that stay on for some tokens, plus noise."""
    g = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(2 * D, D, generator=torch.Generator()
                                                  .manual_seed(1)), dim=1)  # fmt: skip
    on = torch.rand(n, LENGTH // 4, 2 * D, generator=g) < 0.06
    value = on.repeat_interleave(4, 1) * (2 + torch.rand(n, LENGTH, 2 * D, generator=g))
    return value @ W + 0.1 * torch.randn(n, LENGTH, D, generator=g) + 1.0


def ours(name: str, options: dict):
    """A variant with biases, thresholds and a memory that matter, as if trained on a store."""
    from tsae import saes

    torch.manual_seed(0)
    sae = saes.build(name.partition(",")[0], d_in=D, d_sae=F, k=K, **options)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1)
        sae.b_dec.normal_(SCALE, 0.1)
        for part in getattr(sae.act, "parts", [sae.act]):
            if hasattr(part, "threshold"):
                part.threshold.fill_(0.3)
            if hasattr(part, "log_threshold"):
                part.log_threshold.uniform_(-2, 0)
        for weight_name, weight in sae.named_parameters():
            if weight_name not in OF_ALL and not weight_name.startswith("act."):
                weight.add_(0.2 * torch.randn_like(weight))
    sae.meta = {"scale": SCALE, "layer": 3, "world": "gpt2"}
    return sae.eval()


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest |a − b| over the largest |b|."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


@torch.no_grad()
def out(directory: Path) -> list[dict]:
    """Every variant of OUT through SAELens."""
    from sae_lens import SAE

    from tsae import saes
    from tsae.interop import load_saelens, save_saelens

    rows = []
    for name, options in OUT.items():
        sae = ours(name, options)
        moving = residuals(8)
        lost = json.loads((save_saelens(sae, directory / name) / "cfg.json").read_text())
        lost = lost["metadata"]["tsae_approximation"]
        its = SAE.load_from_disk(directory / name)
        if lost is None:
            promised, true = moving, sae.encode(SCALE * moving) / SCALE
        elif lost.startswith("the window"):
            promised = moving[:, :1].expand(-1, LENGTH, -1)
            true = (sae.encode(SCALE * promised) / SCALE)[:, options["window"] - 1 :]
            promised = promised[:, options["window"] - 1 :]
        else:
            static = saes.build("topk", d_in=D, d_sae=F, k=K).eval()
            static.load_state_dict({key: getattr(sae, key) for key in OF_ALL}, strict=False)
            promised, true = moving, static.encode(SCALE * moving) / SCALE
        z = its.encode(promised)
        its.save_model(directory / f"{name} again")
        back = load_saelens(directory / f"{name} again")
        full = sae.encode(SCALE * moving) / SCALE
        error = (its.encode(moving) - full).norm() / full.norm()
        rows.append(
            {
                "SAE": name,
                "class": type(its).__name__,
                "codes": gap(z, true),
                "x_hat": gap(its.decode(z), sae.decode(SCALE * true) / SCALE),
                "back": gap(back.encode(promised), true),
                "lost": lost or "",
                "error": float(error),
            }
        )
    return rows


def trained(kind: str):
    """A SAELens SAE of ``kind``, trained there for 100 steps."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class

    cls, config = get_sae_training_class(kind)
    options = {"k": K} if "topk" in kind else {"l1_coefficient": 0.05} if kind == "standard" else {}
    if kind.startswith("matryoshka"):
        options["matryoshka_widths"] = [F // 4, F]
    torch.manual_seed(0)
    sae = cls(config(d_in=D, d_sae=F, dtype="float32", device="cpu", **options))
    sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"

    def batches():
        seed = 1
        while True:
            yield residuals(16, seed).flatten(0, 1)
            seed += 1

    trainer = sae_lens.SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=100 * 16 * LENGTH,
            train_batch_size_samples=16 * LENGTH,
            lr=2e-3,
            lr_end=2e-4,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=batches(),
    )
    trainer.fit()
    return sae


@torch.no_grad()
def taken_in(directory: Path) -> list[dict]:
    """Every kind of IN, as SAELens saves it for inference and, where it loads that, for training."""
    from sae_lens import SAE

    from tsae.interop import load_saelens

    store = SimpleNamespace(scale=SCALE, d_model=D, world="gpt2", layer=3, fingerprint="f")
    rows = []
    for kind in IN:
        with torch.enable_grad():
            sae = trained(kind)
        sae.save_inference_model(directory / kind)
        its = SAE.load_from_disk(directory / kind)
        raw = residuals(8, seed=10_000)
        z, bare = its.encode(raw), load_saelens(directory / kind)
        fitted = load_saelens(directory / kind, store)
        x_hat = fitted(SCALE * raw).x_hat / SCALE
        centred = raw - raw.mean((0, 1))
        rows.append(
            {
                "SAE": kind,
                "class": type(its).__name__,
                "codes": gap(bare.encode(raw), z),
                "x_hat": gap(x_hat, its.decode(z)),
                "store": gap(fitted.encode(SCALE * raw) / SCALE, z),
                "l0": float((z != 0).float().sum(-1).mean()),
                "fve": 1 - float((raw - x_hat).square().sum() / centred.square().sum()),
            }
        )
    return rows


def main() -> None:
    """Print both tables; status 1 when a difference is above the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        went, came = out(Path(directory) / "out"), taken_in(Path(directory) / "in")
    print(
        f"\n{'ours':28s}{'SAELens':14s}{'codes':>9s}{'x_hat':>9s}{'back':>9s}{'moving':>8s}  lost"
    )
    for r in went:
        print(f"{r['SAE']:28s}{r['class']:14s}{r['codes']:9.1e}{r['x_hat']:9.1e}{r['back']:9.1e}"
              f"{r['error']:8.3f}  {r['lost']}")  # fmt: skip
    print(
        f"\n{'SAELens':28s}{'saved as':14s}{'codes':>9s}{'x_hat':>9s}{'store':>9s}{'L0':>8s}  FVE"
    )
    for r in came:
        print(f"{r['SAE']:28s}{r['class']:14s}{r['codes']:9.1e}{r['x_hat']:9.1e}{r['store']:9.1e}"
              f"{r['l0']:8.2f}  {r['fve']:.3f}")  # fmt: skip
    worst = max(
        r[key] for r in went + came for key in ("codes", "x_hat", "back", "store") if key in r
    )
    print(f"\nlargest difference {worst:.1e}; bar 1e-5")
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    main()
