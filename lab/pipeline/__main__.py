"""Command line: ``python -m lab.pipeline COMMAND``; one line for whatever is wrong."""

import argparse
import os
import signal
import sys
from pathlib import Path

from lab.pipeline import notebooks, paper, planner, profile, stage
from lab.pipeline.run import run_all
from tsae.command import Parser, positive
from tsae.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = Parser(prog="lab.pipeline", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    place = Parser(add_help=False)
    place.add_argument("--root", type=Path, default=planner.ROOT, help="the repository")
    shared = Parser(add_help=False, parents=[place])
    shared.add_argument("--profile", default="laptop", help="a file of workflow/profiles")
    shared.add_argument("--model", help="model of a local world: folder or .gguf")
    shared.add_argument("--text", help="text of a local world: file or folder")
    shared.add_argument("--layer", type=int, help="layer that a local world reads")
    devices = ("auto", "cpu", "cuda")
    shared.add_argument("--device", choices=devices, help="in place of the profile's")
    everything = commands.add_parser("all", parents=[shared], help="make all that is missing")
    everything.add_argument("--cores", type=positive, default=2, help="jobs at a time")
    everything.add_argument("--executor", default="local", help="where Snakemake runs the jobs")
    everything.add_argument("--dry-run", action="store_true", help="only say what would be done")
    everything.add_argument("engine", nargs="*", help="after --, options of Snakemake itself")
    run = commands.add_parser("run", parents=[place], help="run one stage of a kept plan now")
    run.add_argument("--plan", type=Path, required=True, help="results/<profile>/plan.json")
    run.add_argument("--stage", required=True, help="its name, as plan prints it")
    commands.add_parser("plan", parents=[shared], help="list the stages")
    commands.add_parser("redraw", parents=[shared], help="figures and numbers of committed tables")
    commands.add_parser("pdf", parents=[place], help="paper/main.pdf again, from what is committed")
    commands.add_parser("readme", parents=[place], help="README's table again, from results/laptop")
    tidy = commands.add_parser("tidy", help="drop timings and machine metadata from notebooks")
    tidy.add_argument("notebooks", nargs="+", type=Path)
    return top


def do(given: argparse.Namespace) -> None:
    """What the command line asks for; modules that draw and tabulate are imported when asked."""
    overrides = {key: getattr(given, key, None) for key in ("model", "text", "layer", "device")}
    root = given.root.resolve() if "root" in given else planner.ROOT
    if given.command == "all":
        engine = (given.cores, given.executor, given.engine, given.dry_run)
        run_all(given.profile, root, overrides, *engine)
    elif given.command == "run":
        run_stage(given.stage, given.plan, root)
    elif given.command == "plan":
        for one in planner.plan(profile.find(given.profile, root), root, overrides):
            print(f"{'done' if one.is_done(root) else 'to do':6}{one.name}  {one.directory}")
    elif given.command == "redraw":
        from lab.paper import report

        part = profile.part_of_paper(profile.read(profile.find(given.profile, root), overrides))
        print(f"wrote {report.rewrite_numbers(given.profile, root, part)}")
        for name in report.redrawn(given.profile, root, part):
            print(f"wrote {root / 'figures' / part / name}.pdf and .png")
    elif given.command == "pdf":
        print(f"wrote {paper.build(root, root)}")
    elif given.command == "readme":
        from lab.paper.readme import rewrite

        print(f"wrote {rewrite(root)}")
    else:
        for path in given.notebooks:
            if (content := notebooks.tidy_bytes(path)) != path.read_bytes():
                path.write_bytes(content)
                print(f"tidied {path}")


def run_stage(name: str, plan: Path, root: Path) -> None:
    """Run one stage of the kept plan; Snakemake's jobs come here."""
    stages = {one.name: one for one in planner.kept(plan)}
    if name not in stages:
        raise UserError(f"There is no stage {name!r}; 'plan' lists them.")
    threads = str(stages[name].parameters["threads"])
    os.environ |= {**stage.ENVIRONMENT, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    print(f"{name} … started", flush=True)
    stage.execute(stages[name], root)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 for one clear line on stderr, 130 when interrupted."""
    given = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        do(given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; what is finished is kept, run again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
