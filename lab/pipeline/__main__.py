"""Command line: ``python -m lab.pipeline COMMAND``; one line for whatever is wrong."""

import argparse
import os
import signal
import sys
from pathlib import Path

from lab.pipeline import execution, front, notebooks, paper, profile
from lab.pipeline.planner import plan
from lab.pipeline.progress import is_done
from lab.pipeline.stages import ROOT, kept, require_unchanged
from tsae.command import Parser, positive
from tsae.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = Parser(prog="lab.pipeline", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    shared = Parser(add_help=False)
    shared.add_argument("--profile", default="laptop", help="a file of workflow/profiles")
    shared.add_argument("--root", type=Path, default=ROOT, help="the repository")
    shared.add_argument("--model", help="model of a local world: folder or .gguf")
    shared.add_argument("--text", help="text of a local world: file or folder")
    shared.add_argument("--layer", type=int, help="layer that a local world reads")
    everything = commands.add_parser("all", parents=[shared], help="make all that is missing")
    everything.add_argument("--cores", type=positive, default=2, help="jobs at a time")
    everything.add_argument("--executor", default="local", help="where Snakemake runs the jobs")
    everything.add_argument("--dry-run", action="store_true", help="only say what would be done")
    everything.add_argument("engine", nargs="*", help="after --, options of Snakemake itself")
    run = commands.add_parser("run", parents=[shared], help="run one stage now")
    run.add_argument("--stage", required=True, help="its name, as plan prints it")
    run.add_argument("--plan", type=Path, help="the plan as run_all kept it, in place of a new one")
    run.add_argument("--jobs", type=positive, default=1, help="for the estimate")
    commands.add_parser("plan", parents=[shared], help="list the stages")
    commands.add_parser(
        "numbers", parents=[shared], help="numbers.tex again, from the committed tables"
    )
    commands.add_parser("redraw", parents=[shared], help="figures again, from the committed tables")
    pdf = commands.add_parser("pdf", help="paper/main.pdf again, from what is committed")
    pdf.add_argument("--root", type=Path, default=ROOT, help="the repository")
    readme = commands.add_parser("readme", help="README's table again, from results/laptop")
    readme.add_argument("--root", type=Path, default=ROOT, help="the repository")
    tidy = commands.add_parser("tidy", help="drop timings and machine metadata from notebooks")
    tidy.add_argument("notebooks", nargs="+")
    return top


def run_stage(given: argparse.Namespace, overrides: dict[str, object]) -> None:
    """Run one stage of the plan; Snakemake's jobs come here."""
    if given.plan:
        stages, machine = kept(given.plan)
    else:
        stages, machine = plan(profile.find(given.profile, given.root), given.root, overrides), 1.0
    stage = next((stage for stage in stages if stage.name == given.stage), None)
    if stage is None:
        raise UserError(f"There is no stage {given.stage!r}; 'plan' lists them.")
    require_unchanged(stage, given.root)
    os.environ |= execution.environment(stage)
    execution.run(stage, stages, given.root, given.jobs, machine)
    try:
        require_unchanged(stage, given.root)
    except UserError:
        (given.root / stage.manifest).unlink()
        raise


def part_of(given: argparse.Namespace) -> str:
    """The part of the paper that the given profile fills."""
    return profile.part_of_paper(profile.read(profile.find(given.profile, given.root)))


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 for one clear line on stderr, 130 when interrupted."""
    given = parser().parse_args(arguments)
    overrides = {key: getattr(given, key, None) for key in ("model", "text", "layer")}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if given.command == "tidy":
            for path in notebooks.tidy_files(given.notebooks):
                print(f"tidied {path}")
        elif given.command == "plan":
            for stage in plan(profile.find(given.profile, given.root), given.root, overrides):
                state = "done" if is_done(stage, given.root) else "to do"
                print(f"{state:6}{stage.name}  {stage.directory}")
        elif given.command == "numbers":
            from lab.paper.report import rewrite_numbers  # draws and tabulates, so only when asked

            part = part_of(given)
            print(f"wrote {rewrite_numbers(given.profile, given.root, part)}")
        elif given.command == "redraw":
            from lab.paper import report

            for name in report.redrawn(given.profile, given.root, part := part_of(given)):
                print(f"wrote {given.root / 'figures' / part / name}.pdf and .png")
        elif given.command == "pdf":
            print(f"wrote {paper.rebuild(given.root.resolve())}")
        elif given.command == "readme":
            from lab.paper.readme import rewrite

            print(f"wrote {rewrite(given.root)}")
        elif given.command == "run":
            run_stage(given, overrides)
        else:
            engine = front.Engine(given.cores, given.executor, tuple(given.engine))
            do = front.foretell if given.dry_run else front.run_all
            do(given.profile, given.root.resolve(), engine, overrides)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; what is finished is kept, run again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
