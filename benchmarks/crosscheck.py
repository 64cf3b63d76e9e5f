"""The same SAEs trained here and by other people's code, side by side on held-out tokens.

    python benchmarks/crosscheck.py --peers-python PATH (--setting DIR | --train F.npy --test F.npy)

Each library trains TopK, BatchTopK and Matryoshka on the same stored activations, in the same
batches and order, with the same budget, seed, peak learning rate, warm-up and linear decay over the
last fifth; loss, initialisation and AuxK are each library's own. The peers clip the gradient of an
error summed over the d dimensions to norm 1, and so does our trainer (``--grad-clip`` gives ours
another bound in that unit). Printed: FVE about the training mean, mean L0 and the number of latents
that fired, each encoding as it does at inference.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.processes import Worker  # noqa: E402

METHODS = ("topk", "batchtopk", "matryoshka")
PEERS = ("dictionary_learning", "sae_lens")


def export(setting: str, split: str, limit: int, path: Path) -> None:
    """Valid tokens of a split in order, in normalised units, cut to whole pieces of 128."""
    from tsae.store import ActivationStore

    store = ActivationStore.open(Path(setting) / "store")
    parts, n = [], 0
    for start in range(0, store.n_sequences(split), 64):
        ids = np.arange(start, min(start + 64, store.n_sequences(split)))
        batch = store.batch(split, ids)
        parts.append(batch.x_BTD[batch.context.mask_BT].numpy())
        n += len(parts[-1])
        if n >= limit:
            break
    x_ND = np.concatenate(parts)[:limit]
    np.save(path, x_ND[: len(x_ND) // 128 * 128].astype(np.float32))


def main() -> None:
    """Train every library and method in turn, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", required=True, help="the peers' environment")
    parser.add_argument("--setting", help="directory that lab.runs.make_setting made")
    parser.add_argument("--train", help=".npy of float32 activations [N, d]")
    parser.add_argument("--test", help=".npy of float32 activations [N, d]")
    sizes = (("latents", 1024), ("k", 16), ("steps", 400), ("batch", 2048), ("warmup", 50))
    for name, default in (*sizes, ("seed", 0), ("threads", 1), ("limit", 262144)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--grad-clip", type=float, default=1.0, help="ours")
    parser.add_argument("--libraries", nargs="+", default=["tsae", *PEERS])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", help="where to write the numbers as JSON")
    args = parser.parse_args()
    if not args.setting and not (args.train and args.test):
        parser.error("give --setting, or --train and --test")

    with tempfile.TemporaryDirectory() as directory:
        train, test = Path(args.train or f"{directory}/a.npy"), args.test or f"{directory}/b.npy"
        if args.setting:
            export(args.setting, "train", args.limit, train)
            export(args.setting, "test", 8192, Path(test))
        mean = f"{directory}/mean.npy"
        x_ND = np.load(train, mmap_mode="r")
        np.save(mean, x_ND.mean(0))
        print(f"{x_ND.shape[0]} train tokens, d={x_ND.shape[1]}, F={args.latents}, k={args.k}, "
              f"{args.steps} steps of {args.batch}, lr {args.lr:g}")  # fmt: skip
        rows = []
        for method in args.methods:
            for library in args.libraries:
                spec = {"library": library, "method": method, "x": str(train)}
                names = ("latents", "k", "batch", "steps", "lr", "warmup", "seed", "threads")
                spec |= {name: getattr(args, name) for name in names}
                if library == "tsae":
                    spec["options"] = {"grad_clip": args.grad_clip}
                worker = Worker(sys.executable if library == "tsae" else args.peers_python, spec)
                cost = worker.ask(do="steps", n=args.steps)
                found = worker.ask(do="held_out", x=str(test), mean=mean)
                worker.close()
                rows.append({"library": library, "method": method, **found, "cpu": cost["cpu"]})
                print(f"{method:12s}{library:22s}FVE {found['fve']:.4f}  L0 {found['l0']:6.2f}  "
                      f"alive {found['alive']:5d}/{args.latents}  {cost['cpu']:.0f} s CPU",
                      flush=True)  # fmt: skip
    for method in args.methods:
        own = [r["fve"] for r in rows if r["method"] == method and r["library"] == "tsae"]
        peers = [r["fve"] for r in rows if r["method"] == method and r["library"] != "tsae"]
        if own and peers:
            print(f"{method}: ours minus the best peer {100 * (own[0] - max(peers)):+.2f} points")
    if args.out:
        settings = {k: v for k, v in vars(args).items() if k not in ("peers_python", "setting")}
        Path(args.out).write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
