"""Two runs side by side: numbers by hand, from tables and from a git repository."""

import subprocess

import pandas as pd
import pytest

from lab.pipeline.agreement import agreement, compare, macros, told
from tsae.errors import UserError

NAN = float("nan")


def results(*values):
    """One row a value: metrics a, a, b, whose second row is of another seed."""
    rows = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    return pd.DataFrame(
        {
            "world": "w", "layer": 1, "variant": "v", "act": "topk", "ablation": "", "group": "all",
            "metric": [metric for metric, _ in rows[: len(values)]],
            "seed": [seed for _, seed in rows[: len(values)]],
            "value": values,
        }
    )  # fmt: skip


def differences(*intervals):
    return pd.DataFrame(
        [
            ("w", f"v{i}", "topk", "fvu", "all", (lo + hi) / 2, lo, hi)
            for i, (lo, hi) in enumerate(intervals)
        ],
        columns=["world", "variant", "baseline", "metric", "group", "diff", "lo", "hi"],
    )


NONE = differences((-1, 1))


def test_differences_by_metric():
    found = agreement(results(1.0, 2.0, NAN), results(1.0, 2.5, NAN, 7.0), NONE, NONE)
    assert found.alone == 1
    a, b = found.metrics.to_dict("records")
    assert a == {
        "metric": "a", "rows": 2, "same": 1, "largest": 0.5, "median": 0.25, "extent": 2.5
    }  # fmt: skip
    assert (b["rows"], b["same"], b["largest"]) == (1, 1, 0.0)


def test_only_a_verdict_that_changed_sides_is_told():
    mine = differences((0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1), (0.1, 0.2))
    theirs = differences((0.3, 0.4), (0.1, 0.2), (-0.3, 0.0), (-0.2, -0.1))
    found = agreement(results(1.0), results(1.0), mine, theirs)
    assert (found.verdicts, list(found.changed["variant"])) == (4, ["v1", "v2", "v3"])
    lines = told(found, "abc").splitlines()
    assert lines[0] == "1 numbers beside abc: 1 the same bit for bit; 0 in one of the two alone"
    assert lines[1] == "4 paired differences: 3 on another side of 0 than there"
    assert "w v1 - topk, fvu (all): +0.0500 [-0.1000, +0.2000], there +0.1500" in lines[2]


def test_a_commit_is_read_from_git(tmp_path):
    folder = tmp_path / "results" / "p"
    folder.mkdir(parents=True)
    results(1.0, 2.0).to_parquet(folder / "results.parquet")
    NONE.to_parquet(folder / "differences.parquet")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "m"]):
        subprocess.run([*git, *command], check=True)
    results(1.0, 2.25).to_parquet(folder / "results.parquet")
    found = compare("p", tmp_path)
    assert list(found.metrics["largest"]) == [0.25] and found.alone == 0
    with pytest.raises(UserError, match="cannot be read from commit 'none'"):
        compare("p", tmp_path, "none")
    with pytest.raises(UserError, match="run the profile first"):
        compare("q", tmp_path)


def test_macros_by_hand():
    here, there = results(0.5, 0.25, 0.75).replace({"a": "fve"}), results(0.5, 0.375, 0.75)
    found = agreement(
        here, there.replace({"a": "fve"}), differences((0.5, 0.75)), differences((-1, 0.5))
    )
    assert macros(found, "p", "abc").splitlines()[1:] == [
        r"\newcommand{\againPFve}{.1250}",
        r"\newcommand{\againPVerdicts}{1}",
        r"\newcommand{\againPChanged}{1}",
        r"\newcommand{\againPLargest}{.625}",
    ]
