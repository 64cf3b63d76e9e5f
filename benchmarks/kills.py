"""Kill the smoke pipeline with SIGKILL at random moments, let it go on, and compare its tables.

    python benchmarks/kills.py [--kills 20] [--kills-a-run 5] [--seed 0] [--cores 2]

A copy of the repository without results runs once undisturbed and then, from nothing again, with
``kills-a-run`` kills at moments drawn evenly over the undisturbed run's length; each kill takes
the whole process tree, kernels included, and the same command follows it. A kill counts as
recovered when the command after it ends well, and the tables of its run are the undisturbed ones bit
for bit (every .parquet and every trained dictionary). Prints one line a run and "k/N kills recovered";
exit status 1 unless k = N. Nothing is written but in a temporary directory (--keep DIR keeps it).
"""

import argparse
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tsae", "notebooks", "workflow", "paper", "pyproject.toml")
TABLES = ("*.parquet", "sae.safetensors")


def copy(root: Path) -> None:
    """The parts of the repository that the pipeline reads; an old copy's results go."""
    shutil.rmtree(root / "results", ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", ".snakemake")
            shutil.copytree(source, root / part, dirs_exist_ok=True, ignore=skip)
        else:
            shutil.copy(source, root / part)


def start(root: Path, profile: str, cores: int) -> psutil.Popen:
    command = [sys.executable, "-m", "tsae.pipeline", "all", "--profile", profile]
    command += ["--root", str(root), "--cores", str(cores)]
    log = open(root / "pipeline.log", "ab")  # noqa: SIM115
    # The copy's own package, or an edit of the repository would change the run half way.
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return psutil.Popen(
        command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True
    )


def kill(process: psutil.Popen) -> int:
    """SIGKILL to the process and all below it; how many there were."""
    tree = [process, *process.children(recursive=True)]
    for one in tree:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(tree)
    return len(tree)


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every table and dictionary under ``results``, by path."""
    files = [file for pattern in TABLES for file in (root / "results").rglob(pattern)]
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if ".tmp-" not in str(file)
    }


def killed_run(root: Path, given: argparse.Namespace, moments: list[float]) -> int:
    """Run to the end with a kill at each moment (seconds of work); how many resumes began well."""
    worked, resumed = 0.0, 0
    for moment in moments:
        began = time.monotonic()
        process = start(root, given.profile, given.cores)
        try:
            status = process.wait(timeout=max(moment - worked, 0.1))
        except psutil.TimeoutExpired:
            n = kill(process)
            print(f"  killed {n} processes after {moment:.0f} s of work", flush=True)
            resumed += 1
        else:  # it ended before this moment: what is left to kill is the check that all is done
            print(f"  ended with status {status} before {moment:.0f} s", flush=True)
            resumed += status == 0
        worked += time.monotonic() - began
    return resumed if start(root, given.profile, given.cores).wait() == 0 else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kills-a-run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--keep", type=Path, help="directory to work in, kept afterwards")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (given.keep or Path(scratch)).resolve() / "copy"
        copy(root)
        began = time.monotonic()
        if start(root, given.profile, given.cores).wait() != 0:
            print((root / "pipeline.log").read_text(errors="replace")[-2000:])
            return 1
        seconds = time.monotonic() - began
        expected = digests(root)
        print(f"undisturbed: {seconds:.0f} s, {len(expected)} tables and dictionaries", flush=True)
        generator = random.Random(given.seed)
        recovered, left = 0, given.kills
        while left:
            n = min(left, given.kills_a_run)
            moments = sorted(generator.uniform(0, seconds) for _ in range(n))
            copy(root)
            resumed = killed_run(root, given, moments)
            found = digests(root)
            same = found == expected
            wrong = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
            print(f"{n} kills: {resumed} resumed, tables {'identical' if same else wrong[:5]}")
            recovered += resumed if same else 0
            left -= n
        print(f"{recovered}/{given.kills} kills recovered", flush=True)
        return 0 if recovered == given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
