"""How far the numbers that stand here are from those of a commit: another machine, another version.

On one machine a profile gives the same bytes again. Another CPU rounds sums in another order, and
training takes it from there; how much that is, and whether any verdict hangs on it, is said here.
"""

import io
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lab.results.tidy import is_null
from tsae.errors import UserError

KEYS = ("world", "layer", "variant", "act", "seed", "ablation", "metric", "group")
SETTLED = ("world", "variant", "baseline", "metric", "group")


class Agreement(NamedTuple):
    """Two runs of a profile side by side."""

    metrics: pd.DataFrame
    """One row a metric: rows, same (bit for bit), largest and median |difference|, and ``extent``,
    the largest |value| of the two runs."""
    fve: float
    """Largest |difference| of ``fve`` of a trained system (no null, group all)."""
    alone: int
    """Rows of the results that only one of the two has."""
    verdicts: int
    """Paired differences that both have an interval for."""
    changed: pd.DataFrame
    """Those whose interval excludes 0 in one run alone, or on the other side."""


def committed(path: Path, root: Path, revision: str) -> pd.DataFrame:
    """The Parquet table ``path`` as it stands in ``revision``; raises :class:`UserError`."""
    name = path.relative_to(root).as_posix()
    command = ["git", "-C", str(root), "show", f"{revision}:{name}"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise UserError(f"{name} cannot be read from commit {revision!r}: {told or 'git failed'}.")
    return pd.read_parquet(io.BytesIO(done.stdout))


def compare(profile: str, root: Path, revision: str = "HEAD") -> Agreement:
    """``results/<profile>`` as it stands here beside ``revision``; raises :class:`UserError`."""
    found = {}
    for name in ("results", "differences"):
        path = root / "results" / profile / f"{name}.parquet"
        if not path.is_file():
            raise UserError(f"{path} does not exist: run the profile first (./run_all.sh).")
        found[name] = (pd.read_parquet(path), committed(path, root, revision))
    return agreement(*found["results"], *found["differences"])


def agreement(
    here: pd.DataFrame, there: pd.DataFrame, mine: pd.DataFrame, theirs: pd.DataFrame
) -> Agreement:
    """The results of two runs, then the paired differences of both."""
    both = here.merge(there, on=list(KEYS), suffixes=("", "_there"))
    a, b = both["value"].to_numpy(), both["value_there"].to_numpy()
    both["same"] = (a == b) | (np.isnan(a) & np.isnan(b))
    both["off"] = np.where(both["same"], 0.0, np.abs(a - b))
    both["size"] = np.fmax(np.abs(a), np.abs(b))
    by_metric = both.groupby("metric", sort=True)
    metrics = by_metric.agg(
        rows=("same", "size"),
        same=("same", "sum"),
        largest=("off", "max"),
        median=("off", "median"),
        extent=("size", "max"),
    ).reset_index()
    settled = mine.merge(theirs, on=list(SETTLED), suffixes=("", "_there"))
    sides = [
        (settled[f"lo{which}"] > 0).astype(int) - (settled[f"hi{which}"] < 0).astype(int)
        for which in ("", "_there")
    ]
    changed = settled[sides[0] != sides[1]]
    trained = both[(both["metric"] == "fve") & (both["group"] == "all")]
    trained = trained[~trained["variant"].map(is_null).astype(bool)]
    fve = float(trained["off"].max()) if len(trained) else 0.0
    return Agreement(metrics, fve, len(here) + len(there) - 2 * len(both), len(settled), changed)


def macros(found: Agreement, profile: str, revision: str) -> str:
    r"""LaTeX macros ``\again`` + profile + Fve (the largest difference of a trained
    system's), Verdicts, Changed, and Largest (the largest |difference| among those changed)."""
    changed = (
        found.changed[["diff", "diff_there"]].abs().max(axis=None) if len(found.changed) else 0
    )
    facts = {
        "Fve": f"{found.fve:.4f}".lstrip("0"),
        "Verdicts": found.verdicts,
        "Changed": len(found.changed),
        "Largest": f"{changed:.3f}".lstrip("0"),
    }
    command = f"python -m lab.pipeline compare --profile {profile} --commit {revision}"
    lines = [f"% Written by {command} --tex paper/again_{profile}.tex."]
    lines += [
        rf"\newcommand{{\again{profile.title()}{name}}}{{{value}}}" for name, value in facts.items()
    ]
    return "\n".join([*lines, ""])


def told(found: Agreement, revision: str, most: int = 12) -> str:
    """The comparison in lines: the whole, the metrics that moved most, the verdicts that changed."""
    metrics = found.metrics
    rows, same = int(metrics["rows"].sum()), int(metrics["same"].sum())
    lines = [
        f"{rows} numbers beside {revision}: {same} the same bit for bit; {found.alone} in one "
        "of the two alone"
    ]
    moved = metrics[metrics["largest"] > 0].copy()
    if len(moved):
        moved["share"] = moved["largest"] / moved["extent"]
        moved = moved.sort_values("share", ascending=False)
        lines.append("largest and median difference, and largest value, by metric:")
        lines += [
            f"  {row.metric:32s}{row.largest:12.3g}{row.median:12.3g}{row.extent:12.3g}"
            for row in moved.head(most).itertuples(index=False)
        ]
        if len(moved) > most:
            lines.append(f"  and {len(moved) - most} more, each by a smaller share")
    lines.append(
        f"{found.verdicts} paired differences: {len(found.changed)} on another side of 0 than there"
    )
    for row in found.changed.itertuples(index=False):
        lines.append(
            f"  {row.world} {row.variant} - {row.baseline}, {row.metric} ({row.group}): "
            f"{row.diff:+.4f} [{row.lo:+.4f}, {row.hi:+.4f}], there {row.diff_there:+.4f} "
            f"[{row.lo_there:+.4f}, {row.hi_there:+.4f}]"
        )
    return "\n".join(lines)
