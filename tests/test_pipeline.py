"""Stages run for real on tiny notebooks, killed, resumed, and what may go wrong."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_project import finished, make_root, world, write_profile

from lab.pipeline import execute, plan
from lab.pipeline.__main__ import main
from lab.pipeline.alone import only_run, remove_unfinished
from lab.pipeline.execution import check_parameters, describe
from lab.pipeline.provenance import check_sizes, read_manifest
from tsae.errors import StoreError, UserError


class CellError(Exception):
    ename, evalue = "StoreError", "shard 3 is cut short;\ndelete it."


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("k=0: above 0"), "k=0: above 0"),
        (CellError("traceback"), "shard 3 is cut short; delete it."),
        (KeyError("x"), "KeyError: 'x'"),
        (OSError(errno.ENOSPC, "No space left"), "The disk is full"),
        (type("DeadKernelError", (RuntimeError,), {})("Kernel died"), "of too little memory"),
    ],
)
def test_error_becomes_one_line(error, line):
    assert line in describe(error)[0]
    assert "\n" not in describe(error)[0]


def test_truncated_output_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "shard.bin").write_bytes(b"12345")
    directory = finished(tmp_path / "a")
    check_sizes(directory, read_manifest(directory))
    (directory / "shard.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"shard.bin has 3 bytes, its manifest says 5 bytes"):
        check_sizes(directory, read_manifest(directory))


def test_second_run_of_a_profile_is_turned_away(tmp_path):
    with only_run(tmp_path, "profile tiny"):
        with pytest.raises(UserError, match=f"at work .process {os.getpid()}."):
            with only_run(tmp_path, "profile tiny"):
                raise AssertionError("two runs held the lock")
    with only_run(tmp_path, "profile tiny"):
        pass


def test_what_a_killed_write_left_goes_and_what_is_being_written_stays(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True)  # fmt: skip
    dead, alive = int(ended.stdout), os.getpid()
    (tmp_path / f"sae.tmp-{dead}").mkdir()
    for name in (f"sae.tmp-{dead}/a", f"a.old-{dead}", f"b.tmp-{alive}", "c.tmp-x", "d"):
        (tmp_path / name).touch()
    remove_unfinished(list(tmp_path.rglob("*")))
    assert {path.name for path in tmp_path.rglob("*")} == {f"b.tmp-{alive}", "c.tmp-x", "d"}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["all", "--profile", "nothing"], "choose one of: tiny"),
        (["all", "--profil", "tiny", "--speed", "3"], "--speed"),
        (["all", "--profile", "tiny", "--cores", "0"], "at least 1"),
        (["run", "--profile", "tiny", "--stage", "x"], "no stage 'x'"),
        (["run", "--plan", "nowhere.json", "--stage", "x"], "nowhere.json does not exist"),
        (["tidy", "nothing.ipynb"], "not a notebook"),
    ],
)
def test_bad_command_is_one_line_and_nonzero(tmp_path, capsys, arguments, words):
    make_root(tmp_path, {"worlds": [world()]})
    try:
        status = main([*arguments, *(["--root", str(tmp_path)] * (arguments[0] != "tidy"))])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err.strip()
    assert status == 2
    assert words in told and "\n" not in told


@pytest.mark.parametrize("kind, name", [("world", "atlantis"), ("variant", "psychic")])
def test_unknown_world_or_variant_stops_before_any_work(tmp_path, capsys, kind, name):
    given = {"world": name} if kind == "world" else {"variants": [{"variant": name}]}
    make_root(tmp_path, {"worlds": [world(**given)]})
    assert main(["all", "--profile", "tiny", "--root", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"no {kind} {name!r}; choose one of" in told and told.count("\n") == 1
    assert not list(tmp_path.glob("results/tiny/worlds/*"))


def test_misspelled_parameter_is_named(tmp_path):
    path = make_root(tmp_path, {"worlds": [world()], "figures": {"colour": 1}})
    stages = plan(path, tmp_path)
    check_parameters(stages[0], tmp_path)
    with pytest.raises(UserError, match=r"07_figures.ipynb has no parameter 'colour'"):
        check_parameters(stages[1], tmp_path)


def test_stage_is_executed_with_its_parameters(tmp_path):
    path = make_root(tmp_path, {"worlds": [world(seed=5, variants=[{"variant": "topk", "k": 9}])]})
    stages = plan(path, tmp_path)
    manifest = execute(stages[0], tmp_path)
    directory = tmp_path / stages[0].directory
    assert (directory / "world.txt").read_text() == "microworld 5"
    assert list(manifest["outputs"]) == ["world.txt"]
    assert manifest == read_manifest(directory)
    assert (manifest["seed"], manifest["fingerprint"]) == (5, stages[0].fingerprint)
    assert manifest["peak_memory_mb"] > 10 and manifest["versions"]["torch"]
    told = r"stage train/microworld-topk-s0: k=9: at most d_sae=4 \(log: .*error.log\)"
    with pytest.raises(UserError, match=told) as caught:
        execute(stages[1], tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / stages[1].manifest).exists()
    assert "Traceback" in (tmp_path / stages[1].directory / "error.log").read_text()


def test_known_errors_speak_for_themselves():
    assert describe(StoreError("The store is foreign."))[0] == "The store is foreign."


def run_all(root: Path, *options: str, **given) -> subprocess.Popen:
    command = [sys.executable, "-m", "lab.pipeline", "all", "--profile", "tiny", "--root", root]
    command += options
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=root, **pipes, **given)


def until_asleep(run: subprocess.Popen, root: Path) -> None:
    """Wait until the first stage's kernel is at work, which "slow" asks to take long."""
    limit = time.monotonic() + 120
    while not (root / "slow").read_text() and run.poll() is None and time.monotonic() < limit:
        time.sleep(0.2)
    assert (root / "slow").read_text() == "asleep", run.communicate()


def test_killed_run_resumes_beside_another_and_a_further_call_does_nothing(tmp_path):
    variants = [{"variant": "topk"}, {"variant": "conv", "k": 9}]
    path = make_root(tmp_path, {"worlds": [world(variants=variants[:1])]})
    stages = plan(path, tmp_path)
    (tmp_path / "slow").touch()
    killed = run_all(tmp_path, start_new_session=True)
    until_asleep(killed, tmp_path)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    (tmp_path / "slow").unlink()
    assert not list(tmp_path.glob("results/tiny/*/*/manifest.json"))

    # Two at once: one makes everything, the other says in one line that it is not alone.
    both = [run_all(tmp_path), run_all(tmp_path)]
    told = {run.returncode: text for run in both if (text := run.communicate(timeout=900))}
    assert set(told) == {0, 2}
    assert told[2][1].startswith("Another run of profile tiny is at work (process ")
    assert told[2][0] == "" and told[2][1].count("\n") == 1
    out, err = told[0]
    assert err == "" and "made 3 stages" in out and "no paper/main.tex" in out
    sae = tmp_path / stages[1].directory / "sae.txt"
    assert sae.read_text() == "microworld 0topk"
    assert (tmp_path / "results/tiny/figures/f.pdf").read_text() == "2"

    before = sae.stat().st_mtime_ns
    out, err = (again := run_all(tmp_path)).communicate(timeout=60)
    assert (again.returncode, err) == (0, "")
    assert "nothing to do: everything for profile tiny is up to date (3 stages)" in out
    assert sae.stat().st_mtime_ns == before

    write_profile(tmp_path, {"worlds": [world(variants=variants)]})
    out, err = (failed := run_all(tmp_path)).communicate(timeout=900)
    assert failed.returncode == 2
    first, last = err.strip().split("\n")
    assert first.startswith("stage train/microworld-conv-s0: k=9: at most d_sae=4 (log: ")
    assert "1 of 4 stages failed, 1 wait for them" in last
    assert sae.stat().st_mtime_ns == before


def test_an_interrupted_run_leaves_no_stage_at_work(tmp_path):
    make_root(tmp_path, {"worlds": [world()]})
    (tmp_path / "slow").touch()
    interrupted = run_all(tmp_path, start_new_session=True)
    until_asleep(interrupted, tmp_path)
    family = psutil.Process(interrupted.pid).children(recursive=True)
    assert any("ipykernel" in " ".join(one.cmdline()) for one in family)
    interrupted.terminate()  # the front alone, as a scheduler does; Ctrl-C reaches all of them
    out, err = interrupted.communicate(timeout=60)
    told = "Interrupted; what is finished is kept, run again to go on.\n"
    assert (interrupted.returncode, err) == (130, told)
    assert psutil.wait_procs(family, 20)[1] == []


def test_a_missing_executor_is_one_line(tmp_path, capsys):
    make_root(tmp_path, {"worlds": [world()]})
    status = main(["all", "--profile", "tiny", "--root", str(tmp_path), "--executor", "abacus"])
    told = capsys.readouterr().err.strip()
    assert status == 2 and "\n" not in told
    assert "no executor 'abacus' here: install snakemake-executor-plugin-abacus" in told


def test_stages_run_as_jobs_of_a_cluster(tmp_path):
    """Through a submit command that writes down what it was given and runs it here."""
    path = make_root(tmp_path, {"worlds": [world()]})
    stages = plan(path, tmp_path)
    (made := tmp_path / stages[0].directory).mkdir(parents=True)
    shutil.copy(tmp_path / stages[0].notebook, made / "notebook.ipynb")
    finished(made)
    submit = tmp_path / "submit.sh"
    submit.write_text(f'echo "$1" >>{tmp_path}/jobs\nbash "$1" >{tmp_path}/job.log 2>&1\necho 7\n')
    cluster = ["--executor", "cluster-generic", "--cores", "4", "--"]
    cluster += [
        "--cluster-generic-submit-cmd",
        f"bash {submit}",
        "--latency-wait",
        "1",
        "--seconds-between-status-checks",
        "1",
    ]
    out, err = (run := run_all(tmp_path, *cluster)).communicate(timeout=900)
    assert (run.returncode, err) == (0, ""), (tmp_path / "job.log").read_text()
    assert "made 1 stages" in out
    assert (tmp_path / "results/tiny/figures/f.pdf").read_text() == "1"
    assert len((tmp_path / "jobs").read_text().splitlines()) == 1
