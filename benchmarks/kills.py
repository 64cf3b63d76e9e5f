"""Kill the smoke pipeline with SIGKILL at random moments, let it go on, and compare what it makes.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--profile smoke] [--keep DIR]

Two copies of the repository without results run side by side, one job at a time each: one without
disturbance, one with kills. A kill takes the whole process tree, kernels included, and the same
command follows it. Moments are drawn evenly over the expected seconds of the profile's plan and
read as progress, so many stages done and so many CPU seconds of work since, so that kills reach the
last stages whatever else the machine does and however much each kill costs.

After each kill every stage that counts as done must be whole: a readable manifest, and each file
with the SHA-256 that it names. A kill counts as recovered when that holds, the command after it ends
well or is killed in its turn, and in the end every table, dictionary, figure and PDF is the
undisturbed one bit for bit and no unfinished file is left. Prints one line a kill and "k/N kills
recovered"; exit status 1 unless k = N. Writes to a temporary directory alone (--keep DIR keeps it,
and takes an undisturbed copy that is there already).
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
from itertools import accumulate
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lab.pipeline import plan  # noqa: E402
from lab.pipeline.profile import find  # noqa: E402

PARTS = ("tsae", "lab", "notebooks", "workflow", "paper", "figures", "pyproject.toml")
KINDS = {".parquet", ".safetensors", ".tex", ".pdf", ".png"}
START = 10.0
"""CPU seconds, about, that the command takes before its first stage is at work."""
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


def start(root: Path, profile: str) -> psutil.Popen:
    command = [sys.executable, "-m", "lab.pipeline", "all", "--profile", profile]
    command += ["--root", str(root), "--cores", "1"]
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
    return sorted(root.glob("results/stages/*/manifest.json"))


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


def progress(moment: float, expected: list[float]) -> tuple[int, float]:
    """How many stages are done at a moment, and for how many seconds the next has been worked on;
    ``expected``: the seconds of each stage."""
    ends = list(accumulate(expected))
    n_done = sum(end <= moment for end in ends)
    return n_done, moment - ([0.0, *ends][n_done])


def worked(process: psutil.Process) -> float:
    """CPU seconds of a process and of all below it, those that have ended too."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += sum(one.cpu_times()[:4])  # user, system, and both of children that ended
        except psutil.NoSuchProcess:
            pass
    return total


def killed(root: Path, given: argparse.Namespace, n_done: int, seconds: float) -> int | None:
    """Go on until ``n_done`` stages are done and then ``seconds`` of CPU; how many processes were
    killed, None if the command ended before."""
    process, before = start(root, given.profile), 0.0
    waiting = len(manifests(root)) < n_done
    while process.poll() is None:
        if waiting and len(manifests(root)) >= n_done:
            waiting, before = False, worked(process)
        if not waiting and worked(process) - before >= seconds:
            return kill(process)
        time.sleep(0.1)
    return None


def disturbed(root: Path, given: argparse.Namespace, moments: list[tuple[int, float]]) -> list[int]:
    """One run from nothing with a kill at each moment; for each kill 1 if all was well after it."""
    well: list[int] = []
    for n_done, seconds in moments:
        n = killed(root, given, n_done, seconds)
        if n is None:
            break  # it ended, well or with an error that the command below will tell again
        wrong = damage(root)
        well.append(not wrong)
        print(
            f"  killed {n} processes with {len(manifests(root))} stages done, {seconds:.1f} CPU s "
            f"after stage {n_done}; {', '.join(wrong) or 'all that is done is whole'}",
            flush=True,
        )
    status = start(root, given.profile).wait()
    print(f"  the command after the last kill ended with status {status}", flush=True)
    return well if status == 0 else [0] * len(well)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--keep", type=Path, help="directory to work in, kept afterwards")
    given = parser.parse_args()
    expected = [START + stage.seconds for stage in plan(find(given.profile, ROOT), ROOT)]
    generator = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, root = ((given.keep or Path(scratch)).resolve() / n for n in ("whole", "killed"))
        there = whole.is_dir()
        if not there:
            copy(whole)
        undisturbed = None if there else start(whole, given.profile)
        recovered = total = 0
        while total < given.kills:
            n = given.kills - total
            moments = [(i + generator.random()) / n * sum(expected) for i in range(n)]
            copy(root)
            well = disturbed(root, given, [progress(moment, expected) for moment in moments])
            undisturbed = undisturbed or start(whole, given.profile)
            if undisturbed.wait() != 0:
                print((whole / "pipeline.log").read_text(errors="replace")[-2000:])
                return 1
            found, wanted = made(root), made(whole)
            wrong = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            wrong += unfinished(root)
            said = f"all {len(wanted)} files identical" if not wrong else wrong
            print(f"{len(well)} kills in a run from nothing: {said}", flush=True)
            recovered += 0 if wrong else sum(well)
            total += len(well)
        print(f"{recovered}/{total} kills recovered", flush=True)
        return 0 if recovered == total else 1


if __name__ == "__main__":
    sys.exit(main())
