"""Stages run for real on tiny notebooks, killed, resumed, and what may go wrong."""

import errno
import os
import signal
import time

import psutil
import pytest
from tiny_project import finished, make_root, run_all, world, write_profile

from lab.pipeline import plan
from lab.pipeline.__main__ import main
from lab.pipeline.planner import keep
from lab.pipeline.run import check_input
from lab.pipeline.stage import check_sizes, describe, execute, read_manifest, remove_unfinished
from tsae.errors import StoreError, UserError


class CellError(Exception):
    ename, evalue = "StoreError", "shard 3 is cut short;\ndelete it."


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("k=0: above 0"), "k=0: above 0"),
        (StoreError("The store is foreign."), "The store is foreign."),
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
    (tmp_path / "shard.bin").write_bytes(b"12345")
    check_sizes(finished(tmp_path))
    (tmp_path / "shard.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"shard.bin has 3 bytes, its manifest says 5 bytes"):
        check_sizes(tmp_path)


def test_what_a_killed_write_left_goes(tmp_path):
    (tmp_path / "sae.tmp-12").mkdir()
    for name in ("sae.tmp-12/a", "a.old-12", "c.tmp-x", "d"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path.rglob("*"))
    assert {path.name for path in tmp_path.rglob("*")} == {"c.tmp-x", "d"}


ALL = ["all", "--profile", "tiny"]


@pytest.mark.parametrize(
    "arguments, given, words",
    [
        (["all", "--profile", "nothing"], {}, "choose one of: tiny"),
        ([*ALL, "--speed", "3"], {}, "--speed"),
        ([*ALL, "--cores", "0"], {}, "at least 1"),
        ([*ALL, "--executor", "abacus"], {}, "invalid choice: 'abacus'"),
        (["run", "--plan", "plan.json", "--stage", "x"], {}, "no stage 'x'"),
        (["run", "--plan", "nowhere.json", "--stage", "x"], {}, "nowhere.json does not exist"),
        (["tidy", "nothing.ipynb"], {}, "not a notebook"),
        (ALL, {"world": "atlantis"}, "no world 'atlantis'; choose one of"),
        (ALL, {"variants": [{"variant": "psychic"}]}, "no variant 'psychic'; choose one of"),
    ],
)
def test_bad_input_is_one_line_before_any_work(tmp_path, capsys, arguments, given, words):
    path = make_root(tmp_path, {"worlds": [world(**given)]})
    keep(plan(path, tmp_path), tmp_path / "plan.json")
    arguments = [str(tmp_path / a) if a == "plan.json" else a for a in arguments]
    root = [] if arguments[0] == "tidy" else ["--root", str(tmp_path)]
    try:
        status = main([*arguments, *root])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err
    assert status == 2
    assert words in told and told.count("\n") == 1
    assert not list(tmp_path.glob("results/stages/*"))


def test_misspelled_parameter_is_named(tmp_path):
    stages = plan(make_root(tmp_path, {"worlds": [world()], "figures": {"colour": 1}}), tmp_path)
    check_input(stages[:1], tmp_path)
    with pytest.raises(UserError, match="07_figures.ipynb.: there is no parameter 'colour'"):
        check_input(stages, tmp_path)


def test_stage_is_executed_with_its_parameters(tmp_path):
    path = make_root(tmp_path, {"worlds": [world(seed=5, variants=[{"variant": "topk", "k": 9}])]})
    stages = plan(path, tmp_path)
    manifest = execute(stages[0], tmp_path)
    directory = tmp_path / stages[0].directory
    assert (directory / "world.txt").read_text() == "microworld 5"
    assert list(manifest["outputs"]) == ["world.txt"]
    assert manifest == read_manifest(directory) == execute(stages[0], tmp_path)
    assert (manifest["parameters"]["seed"], manifest["fingerprint"]) == (5, stages[0].fingerprint)
    assert manifest["peak_memory_mb"] > 10 and manifest["versions"]["torch"]
    told = r"stage train-microworld-topk-s0: k=9: at most d_sae=4 \(log: .*error.log\)"
    with pytest.raises(UserError, match=told) as caught:
        execute(stages[1], tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / stages[1].manifest).exists()
    assert "Traceback" in (tmp_path / stages[1].directory / "error.log").read_text()


def until_asleep(run, root):
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
    assert not list(tmp_path.glob("results/stages/*/manifest.json"))

    # Two at once: one makes everything, the other says in one line that it is not alone.
    both = [run_all(tmp_path), run_all(tmp_path)]
    told = {run.returncode: text for run in both if (text := run.communicate(timeout=900))}
    assert set(told) == {0, 2}
    assert told[2][1].startswith("Another run of profile tiny is at work (process ")
    assert told[2][0] == "" and told[2][1].count("\n") == 1
    out, err = told[0]
    assert err == "" and "made 3 stages" in out and "no paper/main.tex" in out
    assert [line.split(" … ")[0] for line in out.splitlines() if line.startswith("[")] == [
        f"[{i}/3] {stage.name}" for i, stage in enumerate(stages, 1)
    ]
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
    assert first.startswith("stage train-microworld-conv-s0: k=9: at most d_sae=4 (log: ")
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
