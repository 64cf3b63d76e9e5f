"""SAEBench's ``core`` evaluation, unmodified and offline, on our SAEs; and ours beside it.

    python benchmarks/saebench_core.py --peers-python PATH --setting DIR [--sae DIR ...]

``multiple_evals`` of SAEBench 0.6 runs in the peers' environment, cut off from the hub: the model
is the saved folder of the setting's world (``smollm2``, ``local``, a hub world), whose path is put
on TransformerLens's list of model names so that it opens it; the data set a
local folder with the held-out documents as Parquet, the SAE a ``tsae.interop.BenchSAE``, which gets
whole sequences [B, T, d]. Without ``--sae`` a static and a temporal SAE are trained briefly.

The tokens that SAEBench read are then evaluated here twice. *Its rules*: a row of tokens is one
document to the encoder, positions count unless they hold BOS, EOS or padding; bar 1e-3. *Our
rules*: no context crosses a BOS inside a row, massive tokens do not count, and the first token of
the next document is not to be predicted; not compared. ``shuffled`` is the encoder on the same
tokens in another order: what it loses shows that sequences arrive whole.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

OTHER = ("ce_loss_with_ablation", "ce_loss_score", "kl_div_with_ablation", "kl_div_score")
"""SAEBench's ablation zeroes BOS too, ours leaves it: not compared."""
NAMES = {
    "l0": "l0",
    "l1": "l1",
    "explained_variance_legacy": "fve_saebench_original",
    "cossim": "cosine",
    "l2_ratio": "l2_ratio",
    "relative_reconstruction_bias": "reconstruction_bias",
    "frac_alive": "alive",
    "ce_loss_without_sae": "ce_clean",
    "ce_loss_with_sae": "ce_sae",
    "ce_loss_with_ablation": "ce_ablated",
    "ce_loss_score": "ce_score",
    "kl_div_with_sae": "kl_sae",
    "kl_div_with_ablation": "kl_ablated",
    "kl_div_score": "kl_score",
}


def theirs(spec: dict) -> None:
    """Run SAEBench in the peers' environment; tokens and metrics go to ``spec["out"]``."""
    from sae_bench.evals.core import main as core
    from sae_lens.training.activations_store import ActivationsStore
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    from tsae import saes
    from tsae.interop import BenchSAE

    OFFICIAL_MODEL_NAMES.append(spec["model"])  # HookedTransformer knows models by name alone
    n, size, length = spec["batches"], spec["batch_size"], spec["length"]

    def bench(path: str) -> BenchSAE:
        return BenchSAE(
            saes.load(path).eval(),
            model_name=spec["model"],
            layer=spec["layer"],
            massive_norm=spec["massive_norm"],
            context_size=length,
        )

    core.multiple_evals(
        [(name, bench(path)) for name, path in spec["saes"].items()],
        n_eval_reconstruction_batches=n,
        n_eval_sparsity_variance_batches=n,
        eval_batch_size_prompts=size,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dataset=spec["text"],
        context_size=length,
        output_folder=spec["out"],
        device="cpu",
    )
    # What it read: its own reader again, which goes through the text in one fixed order.
    model = core.HookedTransformer.from_pretrained_no_processing(spec["model"], device="cpu")
    first = SimpleNamespace(cfg=bench(next(iter(spec["saes"].values()))).cfg)
    core.general_utils._standardize_sae_cfg(first.cfg)
    reader = ActivationsStore.from_sae(
        model, first, context_size=length, dataset=spec["text"], dataset_trust_remote_code=True
    )
    tokens = torch.stack([reader.get_batch_tokens(size) for _ in range(2 * n)])
    tokenizer = model.tokenizer
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    torch.save({"tokens": tokens, "special": sorted(special)}, Path(spec["out"]) / "tokens.pt")


class Rows:
    """A store of given token rows: residuals are computed, documents told as the rules say."""

    def __init__(self, world, store, tokens_NBT: torch.Tensor, special: list[int], own: bool):
        self.scale, self.layer = store.scale, store.layer
        self.n_sequences = lambda split: len(tokens_NBT) if split == "test" else 0
        self.median_norm = store.median_norm
        self.world, self.tokens_NBT, self.special, self.own = world, tokens_NBT, special, own

    def batches(self, split: str, batch_size: int):
        """Every row once, in the batches that were read."""
        from tsae import models
        from tsae.sequences import SequenceContext
        from tsae.store import Batch

        model = self.world.model()
        for tokens_BT in self.tokens_NBT:
            raw_BTD = models.residual(model, tokens_BT, self.layer)
            special_BT = torch.isin(tokens_BT, torch.tensor(self.special))
            mask_BT, boundary_BT = ~special_BT, torch.zeros_like(tokens_BT, dtype=torch.uint8)
            rows_B1 = torch.arange(len(tokens_BT))[:, None]
            doc_BT = rows_B1.expand_as(tokens_BT)
            if self.own:
                mask_BT = mask_BT & (raw_BTD.norm(dim=-1) <= 10 * self.median_norm)
                starts_BT = tokens_BT == self.world.bos_id
                boundary_BT[starts_BT] = 3
                boundary_BT[:, 1:][starts_BT[:, :-1]] = 3
                doc_BT = rows_B1 * tokens_BT.shape[1] + starts_BT.cumsum(1)
                doc_BT = torch.where(special_BT, -1, doc_BT)
            context = SequenceContext(mask_BT, boundary_BT)
            yield Batch(raw_BTD * self.scale, tokens_BT, doc_BT, context, {})


def as_bench(sae, massive_norm: float, order_T: torch.Tensor | None = None):
    """``sae`` as the adapter uses it, in the store's units; ``order_T``: tokens in another order."""
    from tsae.interop import BenchSAE

    bench = BenchSAE(sae, massive_norm=massive_norm)

    def forward(x_BTD, context):
        raw_BTD = x_BTD / bench.scale
        if order_T is None:
            z_BTF = bench.encode(raw_BTD) * bench.scale
        else:
            z_BTF = bench.encode(raw_BTD[:, order_T])[:, order_T.argsort()] * bench.scale
        return SimpleNamespace(z=z_BTF, x_hat=sae.decode(z_BTF), extra={})

    return forward


@torch.no_grad()
def ours(sae, rows: Rows, world, n: int) -> dict[str, float]:
    """Our metrics: splicing on the first ``n`` batches, codes on the others, as SAEBench does."""
    from lab.measures.fidelity import core, splice
    from lab.measures.reading import Reading, Sizes, Tokens

    spliced = Rows(world, rows, rows.tokens_NBT[:n], rows.special, rows.own)
    everything = Reading(spliced, Sizes(splice=2**62), progress=False)
    found = {r["metric"]: r["value"] for r in
             splice.measure({"": sae}, everything, world)[""].rows}  # fmt: skip
    coded = Rows(world, rows, rows.tokens_NBT[n:], rows.special, rows.own)
    table = None
    for batch in coded.batches("test", 0):
        out = sae(batch.x_BTD, batch.context)
        tokens = Tokens.of(batch, out.z, out.x_hat)
        table = table or core.Core(tokens.x_ND.mean(0))
        table.update(tokens)
    found |= {r["metric"]: r["value"] for r in table.rows() if r["group"] == "all"}
    return found | {"l1": found["l1"] / rows.scale}


def trained(args, setting, directory: str) -> dict[str, str]:
    """A static and a temporal SAE, trained briefly on the setting's store."""
    from tsae.training.runs import run_training

    size = {"k": args.k, "d_sae": args.latents, "steps": args.steps, "lr": 2e-3}
    found = {}
    for variant, options in {"topk": {}, "conv": {"window": 8, "gate_level": 3}}.items():
        sae = run_training(
            setting.store, f"{directory}/{variant}", variant=variant, act="topk", options=options,
            warmup_steps=min(50, args.steps // 4), progress=False, **size,
        ).sae  # fmt: skip
        found[variant] = f"{directory}/{variant}-sae"
        sae.save(found[variant])
    return found


def main() -> None:
    """Run SAEBench, then ours on the same tokens; status 1 when one differs by more than 1e-3."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", help="the peers' environment")
    parser.add_argument("--setting", help="directory that lab.runs.make_setting made")
    parser.add_argument("--sae", nargs="*", default=[], help="directories of saved SAEs")
    sizes = (("latents", 1024), ("k", 32), ("steps", 100), ("batches", 4), ("batch-size", 8))
    for name, default in sizes:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", help="where to write the numbers as JSON")
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        theirs(json.loads(Path(args.theirs).read_text()))
        return
    if not (args.peers_python and args.setting):
        parser.error("give --peers-python and --setting")

    import datasets

    from lab.runs.setting import open_setting
    from tsae import saes

    setting = open_setting(args.setting)
    world, store = setting
    with tempfile.TemporaryDirectory() as directory:
        paths = {Path(path).name: path for path in args.sae} or trained(args, setting, directory)
        text, out = Path(directory) / "text", Path(directory) / "out"
        text.mkdir()
        wanted, documents = 2 * args.batches * args.batch_size * world.seq_len, []
        for document in world.documents("test"):
            documents.append({"text": "".join(world.to_strings(document.tokens))})
            wanted -= len(document.tokens)
            if wanted < 0:
                break
        datasets.Dataset.from_list(documents).to_parquet(text / "train.parquet")
        spec = {
            "saes": paths, "model": world.config.model, "layer": store.layer, "text": str(text),
            "massive_norm": 10 * store.median_norm, "length": world.seq_len, "out": str(out),
            "batches": args.batches, "batch_size": args.batch_size,
        }  # fmt: skip
        Path(directory, "spec.json").write_text(json.dumps(spec))
        command = [
            args.peers_python,
            "-W",
            "ignore",
            __file__,
            "--theirs",
            f"{directory}/spec.json",
        ]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}
        cache = {"HF_DATASETS_CACHE": f"{directory}/cache"}
        subprocess.run(command, env=os.environ | offline | cache, check=True, stdout=sys.stderr)
        read = torch.load(out / "tokens.pt")
        report = {}
        for name, path in paths.items():
            file = out / f"{name}_custom_sae_eval_results.json"
            if not file.exists():
                sys.exit(f"SAEBench gave no result for {name}; its message is above.")
            metrics = json.loads(file.read_text())["eval_result_metrics"]
            report[name] = {
                "saebench": {k: v for part in metrics.values() for k, v in part.items()}
            }
            sae = saes.load(path).eval()
            order_T = torch.randperm(world.seq_len, generator=torch.Generator().manual_seed(0))
            its = Rows(world, store, read["tokens"], read["special"], own=False)
            own = Rows(world, store, read["tokens"], read["special"], own=True)
            massive = spec["massive_norm"]
            report[name] |= {
                "its rules": ours(as_bench(sae, massive), its, world, args.batches),
                "our rules": ours(sae, own, world, args.batches),
                "shuffled": ours(as_bench(sae, massive, order_T), its, world, args.batches),
            }
    worst = 0.0
    for name, found in report.items():
        print(f"\n{name:30s}{'SAEBench':>11s}{'its rules':>11s}{'difference':>12s}"
              f"{'our rules':>11s}{'shuffled':>11s}")  # fmt: skip
        for their, our in NAMES.items():
            a, b = found["saebench"][their], found["its rules"][our]
            if their not in OTHER:
                worst = max(worst, abs(a - b) / max(abs(a), 1.0))
            print(f"{their:30s}{a:11.5f}{b:11.5f}{abs(a - b):12.1e}"
                  f"{found['our rules'][our]:11.5f}{found['shuffled'][our]:11.5f}")  # fmt: skip
        own = [found[rules]["fve"] for rules in ("its rules", "our rules", "shuffled")]
        print(
            f"{'explained_variance (not ours)':30s}{found['saebench']['explained_variance']:11.5f}"
        )
        print(f"{'fve (not theirs)':30s}{'':11s}{own[0]:11.5f}{'':12s}{own[1]:11.5f}{own[2]:11.5f}")
    print(f"\nlargest difference {worst:.1e} (relative above 1); bar 1e-3")
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=1))
    sys.exit(worst > 1e-3)


if __name__ == "__main__":
    main()
