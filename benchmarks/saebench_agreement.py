"""Our core metrics and sparse probes beside SAEBench's own functions on the same codes.

    python benchmarks/saebench_agreement.py --peers-python PATH --setting DIR

A TopK SAE is trained for a moment on the setting's activations; its codes and reconstructions of
held-out tokens go to SAEBench 0.6 (in the peers' environment: ``get_sparsity_and_variance_metrics``
of ``core``, and of ``sparse_probing`` the latents by mean difference and the scikit-learn probe)
and to ours. Printed: both numbers and the difference; the bar is 1e-3. ``explained_variance`` of
SAEBench subtracts the square of a mean of squares, not of a mean, so it is shown, not compared.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

KS = (1, 2, 5, 20)


def theirs(path: str) -> dict:
    """SAEBench's numbers for the arrays in ``path``; runs in the peers' environment."""
    from sae_bench.evals.core.main import get_sparsity_and_variance_metrics
    from sae_bench.evals.sparse_probing import probe_training
    from sae_bench.sae_bench_utils import dataset_info

    a = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    hook = "blocks.0.hook_resid_post"
    sae = SimpleNamespace(
        cfg=SimpleNamespace(
            hook_name=hook, hook_head_index=None, hook_layer=0, d_sae=a["z"].shape[1]
        ),
        device="cpu",
        encode=lambda x: a["z"][None],
        decode=lambda z: a["x_hat"][None],
    )
    model = SimpleNamespace(run_with_cache=lambda *_, **__: (None, {hook: a["x"][None]}))
    tokens = torch.zeros(1, len(a["x"]), dtype=torch.long)
    store = SimpleNamespace(get_batch_tokens=lambda _: tokens)
    metrics, features = get_sparsity_and_variance_metrics(
        sae, model, store, 1, True, True, True, True, 1, {}
    )
    found = {name: float(value) for name, value in metrics.items()}
    found["alive"] = float((np.array(features["feature_density"]) > 0).mean())
    positive, negative = dataset_info.POSITIVE_CLASS_LABEL, dataset_info.NEGATIVE_CLASS_LABEL
    for k in KS:
        labels = {s: torch.where(a[f"y_{s}"] == 1, positive, negative) for s in ("train", "test")}
        mask = probe_training.get_top_k_mean_diff_mask(a["f_train"], labels["train"], k)
        inputs = [probe_training.apply_topk_mask_reduce_dim(a[f"f_{s}"], mask) for s in labels]
        _, accuracy = probe_training.train_sklearn_probe(
            inputs[0], labels["train"], inputs[1], labels["test"]
        )
        found[f"chosen k={k}"] = (~mask).nonzero()[:, 0].tolist()
        found[f"probe k={k}"] = float(accuracy)
    return found


def arrays(args) -> dict[str, np.ndarray]:
    """Codes of a briefly trained SAE, and a balanced probing problem over single tokens."""
    from tsae import saes
    from tsae.store import ActivationStore
    from tsae.training.train import TrainConfig, train

    store = ActivationStore.open(Path(args.setting) / "store")
    torch.manual_seed(0)
    sae = saes.build("topk", d_in=store.d_model, d_sae=args.latents, k=args.k)
    with tempfile.TemporaryDirectory() as directory:
        config = TrainConfig(steps=args.steps, warmup_steps=10, lr=2e-3, eval_every=0)
        sae = train(sae, store, f"{directory}/run", config, progress=False).sae

    def coded(split):
        batch = store.batch(split, np.arange(min(32, store.n_sequences(split))))
        with torch.no_grad():
            out = sae(batch.x_BTD, batch.context)
        keep = batch.context.mask_BT
        labels = {name: label_BT[keep].numpy() for name, label_BT in batch.labels.items()}
        return batch.x_BTD[keep], out.x_hat[keep], out.z[keep], labels

    x, x_hat, z, labels = coded("test")
    made = {"x": x.numpy(), "x_hat": x_hat.numpy(), "z": z.numpy()}
    _, _, z_train, train_labels = coded("train")
    name = args.label or max(labels, key=lambda n: (labels[n] >= 0).sum())
    top = np.bincount(train_labels[name][train_labels[name] >= 0]).argmax()
    for split, codes, found in (("train", z_train, train_labels), ("test", z, labels)):
        generator = np.random.default_rng(0)
        positive = np.flatnonzero(found[name] == top)
        other = np.flatnonzero((found[name] >= 0) & (found[name] != top))
        n = min(len(positive), len(other), 500)
        rows = np.concatenate(
            [generator.permutation(positive)[:n], generator.permutation(other)[:n]]
        )
        made[f"f_{split}"], made[f"y_{split}"] = codes.numpy()[rows], np.repeat([1, 0], n)
    return made


def ours(a: dict[str, np.ndarray]) -> dict:
    """The same quantities by this project's code, under SAEBench's names."""
    from lab.measures.concepts import probing
    from lab.measures.fidelity.core import Core
    from lab.measures.reading import Tokens

    x, x_hat, z = (torch.from_numpy(a[name]) for name in ("x", "x_hat", "z"))
    zero = torch.zeros(len(x), dtype=torch.long)
    core = Core(x.mean(0))
    core.update(Tokens(x, x_hat, z, *[zero] * 5, {}))
    v = {row["metric"]: row["value"] for row in core.rows() if row["group"] == "all"}
    found = {
        "l0": v["l0"],
        "l1": v["l1"],
        "mse": v["mse"] * x.shape[1] / len(x),  # SAEBench divides a token's sum by n, then means
        "explained_variance_legacy": v["fve_saebench_original"],
        "explained_variance": v["fve"],
        "cossim": v["cosine"],
        "l2_ratio": v["l2_ratio"],
        "relative_reconstruction_bias": v["reconstruction_bias"],
        "alive": v["alive"],
    }
    order = probing.by_mean_difference(a["f_train"], a["y_train"])
    for k in KS:
        probe = probing.fit(a["f_train"], a["y_train"], order[:k], rescale=False)
        found[f"chosen k={k}"] = sorted(int(i) for i in order[:k])
        found[f"probe k={k}"] = float((probe.predict(a["f_test"]) == a["y_test"]).mean())
    return found


def main() -> None:
    """Compute both sides and print the table; status 1 when one differs by more than 1e-3."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", help="the peers' environment")
    parser.add_argument("--setting", help="directory that lab.runs.make_setting made")
    parser.add_argument("--label", help="the label to probe; default: the most frequent")
    for name, default in (("latents", 512), ("k", 12), ("steps", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        print("\n" + json.dumps(theirs(args.theirs)))
        return
    if not (args.peers_python and args.setting):
        parser.error("give --peers-python and --setting")
    with tempfile.TemporaryDirectory() as directory:
        made, path = arrays(args), f"{directory}/codes.npz"
        np.savez(path, **made)
        command = [args.peers_python, "-W", "ignore", __file__, "--theirs", path]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found, own = json.loads(output.strip().splitlines()[-1]), ours(made)
    worst = 0.0
    print(f"{'quantity':32s}{'SAEBench':>12s}{'ours':>12s}{'difference':>12s}")
    for name, value in own.items():
        if name.startswith("chosen"):
            same = value == found[name]
            print(f"{name:32s}{'same latents' if same else 'OTHER LATENTS':>36s}")
            worst = max(worst, 0.0 if same else 1.0)
            continue
        gap = abs(value - found[name])
        compared = name != "explained_variance"
        note = f"{gap:12.1e}" if compared else "   not compared"
        worst = max(worst, gap if compared else 0.0)
        print(f"{name:32s}{found[name]:12.5f}{value:12.5f}{note}")
    print(f"largest difference {worst:.1e}; bar 1e-3")
    sys.exit(worst > 1e-3)


if __name__ == "__main__":
    main()
