"""Bars of tokens per second by method and library, from the numbers of ``speed.py --out``.

python benchmarks/plot.py FILE.json benchmarks/speed.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns


def main() -> None:
    """Read the rows and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", help="what speed.py --out wrote")
    parser.add_argument("picture", help="PNG to write")
    args = parser.parse_args()
    record = json.loads(Path(args.numbers).read_text())
    table = pd.DataFrame([r for r in record["rows"] if r["library"] != "gemm"])
    table["thousand tokens per CPU second"] = table["cpu_tokens"] / 1000
    sns.set_theme(style="whitegrid", palette="colorblind", font_scale=0.8)
    figure, axes = plt.subplots(figsize=(6.2, 2.8), layout="constrained")
    sns.barplot(table, x="method", y="thousand tokens per CPU second", hue="library", ax=axes)
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.1f", fontsize=6.5)
    axes.set_xlabel("")
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1), title="", frameon=False)
    s = record["settings"]
    axes.set_title(f"d = {s['width']}, F = {s['latents']}, k = {s['k']}, {s['batch']} tokens, fp32, "
                   f"{s['threads']} thread", fontsize=8)  # fmt: skip
    figure.savefig(args.picture, dpi=160)


if __name__ == "__main__":
    main()
