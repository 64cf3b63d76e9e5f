"""The reference budget on a GPU: harvest and one SAE, 2441 steps of 2048 tokens.

    python benchmarks/gpu.py [--variants topk conv causal] [--peers-python PATH] [--out FILE.json]

The model has the shape of Gemma-2-2b (d = 2304) up to block 12 and random weights, so that harvest
costs what it would; the SAE has 16384 latents and k = 40. Tokens are drawn at random and each
step's residuals are harvested just before it. Printed for each variant: minutes of the whole
budget and the share of harvest, tokens per second of training alone, and its dense floating-point
rate against the GPU's own matrix product; with ``--peers-python``, the peers' static TopK on the
same shapes. Where there is no GPU it says so in one line and ends with status 2.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WIDTH, LAYER, LENGTH = 2304, 12, 128


def model_up_to_layer():
    """Gemma-2-2b's blocks 0 to 12 with random weights in bfloat16, without the unembedding."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=256000,
        hidden_size=WIDTH,
        intermediate_size=9216,
        num_hidden_layers=LAYER + 1,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        use_cache=False,
    )
    with torch.device("cuda"):
        return Gemma2Model(config).to(torch.bfloat16).eval().requires_grad_(False)


def harvester(model):
    """Residuals [B, T, d] after block 12 of random tokens [B, T]."""
    kept = {}

    def keep(module, inputs, output):
        kept["x"] = output[0] if isinstance(output, tuple) else output

    model.layers[LAYER].register_forward_hook(keep)

    def harvest(batch: int) -> torch.Tensor:
        tokens = torch.randint(0, model.config.vocab_size, (batch, LENGTH), device="cuda")
        with torch.inference_mode():
            model(tokens)
        return kept["x"].float().clone()

    return harvest


def seconds(work, repeats: int) -> float:
    """Mean wall time of ``work`` on the GPU after one call that is not counted."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def budget(variant: str, harvest, args) -> dict:
    """Train one SAE on the whole budget."""
    from types import SimpleNamespace

    from tsae import saes
    from tsae.training.schedule import learning_rate
    from tsae.training.train import TrainConfig, training_step

    torch.manual_seed(0)
    options = {"window": 4, "lag_rank": 64} if variant == "conv" else {}
    sae = saes.build(variant, d_in=WIDTH, d_sae=args.latents, k=args.k, **options).cuda().train()
    config = TrainConfig(steps=args.steps, device="cuda")
    optimizer = torch.optim.AdamW(sae.parameters(), config.lr, weight_decay=0.0, fused=True)
    first = harvest(16)
    mean_D = first.mean((0, 1))
    scale = (WIDTH / (first - mean_D).square().sum(-1).mean()).sqrt()
    sae.initialise(mean_D * scale)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    began, training = time.perf_counter(), 0.0
    for step in range(args.steps):
        x_BTD = harvest(args.batch // LENGTH) * scale
        torch.cuda.synchronize()
        start = time.perf_counter()
        sae.start_step(step, args.steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        training_step(sae, SimpleNamespace(x_BTD=x_BTD, context=None), optimizer, config)
        torch.cuda.synchronize()
        training += time.perf_counter() - start
    whole = time.perf_counter() - began
    return {
        "variant": variant,
        "minutes": whole / 60,
        "harvest_share": 1 - training / whole,
        "tokens_per_second": args.steps * args.batch / training,
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30,
    }


def main() -> None:
    """Run every variant, then the peers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=["topk", "conv", "causal"])
    sizes = (("latents", 16384), ("k", 40), ("steps", 2441), ("batch", 2048))
    for name, default in sizes:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peers-python", help="the peers' environment, with a CUDA build of torch")
    parser.add_argument("--out", help="where to write the numbers as JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU here: run this command on a machine with one.", file=sys.stderr)
        sys.exit(2)

    x_ND = torch.randn(args.batch, WIDTH, device="cuda")
    weight_DF = torch.randn(WIDTH, args.latents, device="cuda")
    product = seconds(lambda: x_ND @ weight_DF, 20)
    rate = 2 * args.batch * WIDTH * args.latents / product
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; "
          f"fp32 GEMM of the encoder's shape {rate / 1e12:.1f} TFLOP/s")  # fmt: skip
    harvest = harvester(model_up_to_layer())
    rows = [budget(variant, harvest, args) for variant in args.variants]
    for row in rows:
        bound = row["tokens_per_second"] / (args.batch / product)
        print(f"{row['variant']:10s}{row['minutes']:6.2f} min (harvest {row['harvest_share']:.0%}), "
              f"{row['tokens_per_second']:.0f} tokens/s, {bound:.0%} of the encoder product alone, "
              f"{row['peak_gb']:.1f} GB")  # fmt: skip
    if args.peers_python:
        rows += peers(args)
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))


def peers(args) -> list[dict]:
    """Tokens per second of the peers' TopK, on normal activations of the same shapes."""
    import tempfile

    import numpy as np

    from benchmarks.processes import Worker

    rows = []
    with tempfile.TemporaryDirectory() as directory:
        x = f"{directory}/x.npy"
        draw = np.random.default_rng(0).standard_normal((8 * args.batch, WIDTH))
        np.save(x, draw.astype(np.float32))
        for library in ("tsae", "dictionary_learning", "sae_lens", "sparsify"):
            spec = {"library": library, "method": "topk", "x": x, "latents": args.latents,
                    "k": args.k, "batch": args.batch, "steps": args.steps, "lr": 3e-4,
                    "warmup": 100, "seed": 0, "device": "cuda"}  # fmt: skip
            worker = Worker(sys.executable if library == "tsae" else args.peers_python, spec)
            worker.ask(do="steps", n=5)
            times = [worker.ask(do="steps", n=20)["wall"] for _ in range(5)]
            worker.close()
            rate = 20 * args.batch / sorted(times)[2]
            rows.append({"library": library, "tokens_per_second": rate})
            print(f"{library:22s}{rate:10.0f} tokens/s (static TopK, normal activations)")
    return rows


if __name__ == "__main__":
    main()
