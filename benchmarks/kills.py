"""Kill the smoke pipeline with SIGKILL at random moments, let it go on, and compare what it makes.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--cores 1] [--profile smoke]

A copy of the repository without results runs once undisturbed and then again, from nothing, with
kills at moments drawn evenly over the undisturbed run's length. A moment is read as progress, so
many stages done and so many seconds since, so that kills reach the last stages however much each
one costs. A kill takes the whole process tree, kernels included, and the same command follows it.

After each kill every stage that counts as done must be whole: a readable manifest, and each file
with the SHA-256 that it names. A kill counts as recovered when that holds, the command after it ends
well or is killed in its turn, and in the end every table, dictionary, figure and PDF is the
undisturbed one bit for bit and no unfinished file is left. Prints one line a kill and "k/N kills
recovered"; exit status 1 unless k = N. Writes to a temporary directory alone (--keep DIR keeps it).
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tsae", "notebooks", "workflow", "paper", "figures", "pyproject.toml")
KINDS = {".parquet", ".safetensors", ".tex", ".pdf", ".png"}
UNFINISHED = (".tmp-", ".old-")


def copy(root: Path) -> None:
    """The parts of the repository that the pipeline reads, without results."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", ".snakemake")
            shutil.copytree(source, root / part, ignore=skip)
        else:
            shutil.copy(source, root / part)


def start(root: Path, profile: str, cores: int) -> psutil.Popen:
    command = [sys.executable, "-m", "tsae.pipeline", "all", "--profile", profile]
    command += ["--root", str(root), "--cores", str(cores)]
    # The copy's own package, or an edit of the repository would change the run half way.
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with open(root / "pipeline.log", "ab") as log:
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


def manifests(root: Path) -> list[Path]:
    """Of the stages that are done."""
    return sorted(root.glob("results/*/*/*/manifest.json"))


def damage(root: Path) -> list[str]:
    """What is wrong with the stages that count as done."""
    wrong = []
    for path in manifests(root):
        try:
            recorded = json.loads(path.read_bytes())["outputs"]
        except (ValueError, KeyError) as error:
            wrong.append(f"{path}: {error!r}")
            continue
        for name, record in recorded.items():
            file = path.parent / name
            if not file.is_file() or sha256(file) != record["sha256"]:
                wrong.append(str(file))
    return wrong


def sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def made(root: Path) -> dict[str, str]:
    """SHA-256 of every table, dictionary, figure and PDF under ``results``, by path."""
    files = [file for file in (root / "results").rglob("*") if file.suffix in KINDS]
    return {str(file.relative_to(root)): sha256(file) for file in sorted(files)}


def unfinished(root: Path) -> list[str]:
    """Files and folders of writes that never ended."""
    return [str(path) for path in root.rglob("*") if any(mark in path.name for mark in UNFINISHED)]


def undisturbed(root: Path, given: argparse.Namespace) -> list[float] | None:
    """Run to the end; when each stage was done and when all was, in seconds. None if it failed."""
    process, began, times = start(root, given.profile, given.cores), time.monotonic(), [0.0]
    while process.poll() is None:
        now = time.monotonic() - began
        times += [now] * (len(manifests(root)) + 1 - len(times))
        time.sleep(0.2)
    return None if process.wait() else [*times, time.monotonic() - began]


def progress(moment: float, times: list[float]) -> tuple[int, float]:
    """How many stages are done at a moment, and the seconds since the last one was; ``times``: 0
    and when each stage was done."""
    n_done = sum(t <= moment for t in times) - 1
    return n_done, moment - times[n_done]


def killed(root: Path, given: argparse.Namespace, n_done: int, seconds: float) -> int | None:
    """Go on until ``n_done`` stages are done and ``seconds`` more; how many processes were killed,
    None if the command ended before."""
    process, since = start(root, given.profile, given.cores), time.monotonic()
    waiting = len(manifests(root)) < n_done
    while process.poll() is None:
        if waiting and len(manifests(root)) >= n_done:
            waiting, since = False, time.monotonic()
        if not waiting and time.monotonic() - since >= seconds:
            return kill(process)
        time.sleep(0.1)
    return None


def disturbed(root: Path, given: argparse.Namespace, moments: list[tuple[int, float]]) -> list[int]:
    """One run from nothing with a kill at each moment; for each kill 1 if all was well after it."""
    well: list[int] = []
    for n_done, seconds in moments:
        n = killed(root, given, n_done, seconds)
        if n is None:
            break
        wrong = damage(root)
        well.append(not wrong)
        print(
            f"  killed {n} processes with {len(manifests(root))} stages done, {seconds:.1f} s into "
            f"the next; {', '.join(wrong) or 'all that is done is whole'}",
            flush=True,
        )
    status = start(root, given.profile, given.cores).wait()
    print(f"  the command after the last kill ended with status {status}", flush=True)
    return well if status == 0 else [0] * len(well)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--keep", type=Path, help="directory to work in, kept afterwards")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (given.keep or Path(scratch)).resolve() / "copy"
        copy(root)
        times = undisturbed(root, given)
        if times is None:
            print((root / "pipeline.log").read_text(errors="replace")[-2000:])
            return 1
        expected = made(root)
        print(f"undisturbed: {times[-1]:.0f} s, {len(expected)} files to compare", flush=True)
        generator = random.Random(given.seed)
        recovered = total = 0
        while total < given.kills:
            drawn = sorted(generator.uniform(0, times[-1]) for _ in range(given.kills - total))
            moments = [progress(moment, times[:-1]) for moment in drawn]
            copy(root)
            well = disturbed(root, given, moments)
            found = made(root)
            wrong = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
            wrong += unfinished(root)
            print(f"{len(well)} kills: {'all files identical' if not wrong else wrong}", flush=True)
            recovered += 0 if wrong else sum(well)
            total += len(well)
        print(f"{recovered}/{total} kills recovered", flush=True)
        return 0 if recovered == total else 1


if __name__ == "__main__":
    sys.exit(main())
