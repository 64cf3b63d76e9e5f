"""Where the time of a profile's stages goes.

    python benchmarks/stages.py --scratch DIR [--profile laptop] [--stages NAME ...] [--out FILE.json]

Each stage's notebook runs as plain Python under cProfile, in a process of its own and with the
parameters of the profile, in ``DIR/results/...`` in place of the repository's, whose finished stages
serve as inputs: run the profile first. Without ``--stages`` one of each kind and world runs.
Printed for each: CPU seconds, and its costliest functions by their own time (callees aside;
C functions of torch and numpy by name); then the ten largest of all, in which a stage counts as
often as the profile has stages of its kind and world.
"""

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tsae.pipeline import profile  # noqa: E402
from tsae.pipeline.execution import environment  # noqa: E402
from tsae.pipeline.stages import Stage, plan  # noqa: E402


def kind(stage: Stage) -> str:
    """Notebook and world of a stage, as ``train/microworld``."""
    notebook, _, label = stage.name.partition("/")
    return f"{notebook}/{label.partition('-')[0]}"


def measure(stage: Stage) -> dict:
    """Run the notebook of ``stage`` here; CPU and wall seconds, and own seconds by function."""
    os.makedirs(stage.directory, exist_ok=True)
    book = json.loads((ROOT / stage.notebook).read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    names: dict = {"__name__": "__main__"}
    profiler = cProfile.Profile()
    cpu, wall = time.process_time(), time.perf_counter()
    profiler.enable()
    for cell in cells:
        exec(compile("".join(cell["source"]), stage.notebook, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names |= stage.parameters
    profiler.disable()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    own: Counter = Counter()
    for (file, _, name), (_, _, seconds, _, _) in pstats.Stats(profiler).stats.items():
        own[f"{short(file)}{name}"] += seconds
    return {"stage": stage.name, "cpu": cpu, "wall": wall, "own": dict(own.most_common(60))}


def short(file: str) -> str:
    """The last two parts of a source file's path and a colon; nothing for a C function."""
    return "" if file == "~" else "/".join(Path(file).parts[-2:]) + ": "


def lend_inputs(stage: Stage, by_name: dict[str, Stage], scratch: Path) -> None:
    """Link the finished stages that ``stage`` reads into ``scratch``."""
    for name in stage.inputs:
        made, link = ROOT / by_name[name].directory, scratch / by_name[name].directory
        if not (ROOT / by_name[name].manifest).is_file():
            sys.exit(f"Stage {stage.name} needs {name}: run the profile first (./run_all.sh).")
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(made)


def in_a_process(stage: Stage, args: argparse.Namespace) -> dict:
    """:func:`measure` in a fresh Python whose threads and environment are the pipeline's."""
    command = [sys.executable, str(Path(__file__).resolve()), "--scratch", ".", "--one", stage.name]
    done = subprocess.run(
        [*command, "--profile", args.profile],
        cwd=args.scratch,
        env=os.environ | environment(stage) | {"MPLBACKEND": "Agg"},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"Stage {stage.name} failed (its message is above).")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the stages one after the other and print their costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True, help="where the stages write")
    parser.add_argument("--profile", default="laptop", help="a file of workflow/profiles")
    parser.add_argument("--stages", nargs="+", help="names, as 'tsae.pipeline plan' prints them")
    parser.add_argument("--top", type=int, default=10, help="functions printed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", help="where to write the numbers as JSON")
    args = parser.parse_args()
    planned = [s for s in plan(profile.find(args.profile, ROOT), ROOT) if s.notebook]
    by_name = {stage.name: stage for stage in planned}
    if args.one:
        print(json.dumps(measure(by_name[args.one])))
        return
    args.scratch.mkdir(parents=True, exist_ok=True)
    first = {kind(stage): stage.name for stage in reversed(planned)}
    names = args.stages or [stage.name for stage in planned if stage.name in first.values()]
    if unknown := [name for name in names if name not in by_name]:
        sys.exit(f"There is no stage {unknown[0]!r}; 'python -m tsae.pipeline plan' lists them.")
    often, all_of_them, rows = Counter(map(kind, planned)), Counter(), []
    for name in names:
        lend_inputs(by_name[name], by_name, args.scratch)
        rows.append(row := in_a_process(by_name[name], args))
        same = sum(kind(by_name[other]) == kind(by_name[name]) for other in names)
        print(f"{name}: {row['cpu']:.1f} s CPU, {row['wall']:.1f} s wall", flush=True)
        for function, seconds in list(row["own"].items())[: args.top]:
            print(f"  {seconds:8.2f} s {seconds / row['cpu']:5.0%}  {function}", flush=True)
        for function, seconds in row["own"].items():
            all_of_them[function] += seconds * often[kind(by_name[name])] / same
    print("all stages of the profile, estimated:")
    for function, seconds in all_of_them.most_common(args.top):
        print(f"  {seconds:8.1f} s  {function}")
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
