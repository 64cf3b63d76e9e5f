"""Stages as Slurm jobs, with stand-ins for Slurm's commands that run a job where they stand."""

import os
import sys

import pytest
from tiny_project import make_root, run_all, world

from lab.pipeline import plan
from lab.pipeline.__main__ import main

SBATCH = """\
#!{python}
import os, subprocess, sys
given = sys.argv[1:]
with open("{root}/asked", "a") as asked:
    asked.write(" ".join(word for word in given if not word.startswith("--wrap")) + "\\n")
command = next(word for word in given if word.startswith("--wrap=")).removeprefix("--wrap=")
log = given[given.index("--output") + 1].replace("%j", "7")
environment = {{**os.environ, "SLURM_JOB_ID": "7"}}
with open(log, "w") as file:
    done = subprocess.run(command, shell=True, env=environment, stdout=file, stderr=file)
    if done.returncode:
        file.write("slurmstepd: error: *** JOB 7 ON n1 CANCELLED DUE TO TIME LIMIT ***\\n")
with open("{root}/state", "w") as state:
    state.write("FAILED" if done.returncode else "COMPLETED")
print(7)
"""
SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"\n'
SQUEUE = '#!/bin/bash\necho "7|$(cat "{root}/state")"\n'
SCONTROL = '#!/bin/bash\necho "MinJobAge = 300 sec"\n'
SINFO = "#!/bin/bash\necho cpu*\n"
REFUSAL = "sbatch: error: invalid partition specified: x"
NO_ACCOUNTING = "#!/bin/bash\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster without accounting on the PATH; what sbatch was asked is in the file ``asked``."""
    commands = {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE}
    commands |= {"scontrol": SCONTROL, "sinfo": SINFO}
    commands |= dict.fromkeys(["sacct", "sacctmgr"], NO_ACCOUNTING)
    (folder := tmp_path / "bin").mkdir()
    for name, text in commands.items():
        (folder / name).write_text(text.format(python=sys.executable, root=tmp_path))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    pytest.importorskip("snakemake_executor_plugin_slurm")
    return tmp_path


def run(root, *options):
    process = run_all(root, "--executor", "slurm", *options)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


SOON = ["--", "--slurm-init-seconds-before-status-checks", "1"]


def test_stages_run_as_slurm_jobs(slurm):
    """With a model of one's own, whose path goes through two shells as JSON."""
    given = world(world="local", seed=5)
    path = make_root(slurm, {"worlds": [given], "memory": {"worlds": 3000}, "seconds": 720})
    (model := slurm / "my 'model").touch()
    stages = plan(path, slurm, {"model": str(model), "device": "cuda"})
    status, out, err = run(slurm, "--model", str(model), "--device", "cuda", *SOON)
    assert (status, err) == (0, ""), out
    told = out.splitlines()
    assert "2 stages to make with 2 jobs at a time handed to slurm, about" in told[0]
    assert [line.split(" … ")[0] for line in told[1:3]] == ["[1/2] worlds-local", "[2/2] figures"]
    assert "made 2 stages" in told[3]
    assert (slurm / stages[0].directory / "world.txt").read_text() == "local 5"
    worlds, figures = (slurm / "asked").read_text().splitlines()
    # 720 s expected: ten times that is 120 minutes; a figure's stage takes the default memory
    assert "-t 120" in worlds and "--mem 3000" in worlds and "--cpus-per-task=1" in worlds
    assert "--mem 8000" in figures
    assert "gpu:1" in worlds and "gpu" not in figures


def test_a_job_that_slurm_ends_is_told_in_its_words(slurm):
    make_root(slurm, {"worlds": [world()]})
    (slurm / "bin" / "srun").write_text("#!/bin/bash\nexit 1\n")
    status, _, err = run(slurm, *SOON)
    first, last = err.strip().split("\n")
    log = "results/tiny/slurm/rule_worlds-microworld/7.log"
    told = "Slurm ended its job: JOB 7 ON n1 CANCELLED DUE TO TIME LIMIT"
    assert status == 2 and first == f"stage worlds-microworld: {told} (log: {log})"
    assert "1 of 2 stages failed, 1 wait for them" in last


def test_what_sbatch_refuses_is_told_in_its_words(slurm):
    make_root(slurm, {"worlds": [world()]})
    (slurm / "bin" / "sbatch").write_text(f"#!/bin/bash\necho '{REFUSAL}' >&2\nexit 1\n")
    status, _, err = run(slurm, *SOON)
    assert status == 2 and err.count("\n") == 1
    assert "before any stage failed: invalid partition specified: x (log: " in err


def test_dry_run_says_what_slurm_would_be_given_and_runs_nothing(slurm):
    make_root(slurm, {"worlds": [world(variants=[{"variant": "topk"}])]})
    status, out, err = run(slurm, "--dry-run", "--cores", "16")
    assert (status, err) == (0, "")
    *lines, last = out.splitlines()
    names = ["worlds-microworld", "train-microworld-topk-s0", "figures"]
    assert [line.split()[:3] for line in lines] == [["would", "run", name] for name in names]
    made = "3 of 3 stages would be made with 16 jobs at a time handed to slurm, about "
    assert last.startswith(f"Profile tiny: {made}") and last.endswith("; nothing was run")
    assert not (slurm / "results").exists() and not (slurm / "asked").exists()


def test_without_slurm_one_line_says_so(tmp_path, capsys, monkeypatch):
    make_root(tmp_path, {"worlds": [world()]})
    monkeypatch.setenv("PATH", str(tmp_path))
    given = ["all", "--profile", "tiny", "--root", str(tmp_path), "--executor", "slurm"]
    assert main(given) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "no sbatch on the PATH" in told
