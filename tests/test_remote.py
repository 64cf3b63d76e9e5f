"""Stages kept at a URL: fetched whole or not at all, sent once, refused when damaged."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pytest
from tiny_project import make_root, world

from lab.pipeline import plan
from lab.pipeline.__main__ import main
from lab.pipeline.execution import is_done
from lab.pipeline.provenance import outputs
from lab.pipeline.remote import Damaged, Remote, fetch_missing, send_missing
from tsae.errors import UserError
from tsae.files import sha256

FILES = {"sae.bin": b"12345", "deep/rows.txt": b"a b"}


def machine(root: Path) -> list:
    """The three stages of a repository of its own; equal ones on every machine."""
    path = make_root(root, {"worlds": [world(variants=[{"variant": "topk"}])]})
    return plan(path, root)


def make(stage, root: Path) -> Path:
    """Finish a stage by hand, without its notebook's kernel."""
    directory = root / stage.directory
    for name, content in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    (directory / "notebook.ipynb").write_text('{"cells": []}')
    manifest = {"fingerprint": stage.fingerprint, "wall_seconds": 1.0, "peak_memory_mb": 1}
    manifest["outputs"] = outputs(directory)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def content(directory: Path) -> dict[str, bytes]:
    files = [file for file in directory.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


@pytest.fixture
def shared():
    """A remote in memory with a name of its own, and its path there."""
    name = uuid.uuid4().hex
    return Remote(f"memory://{name}"), f"/{name}"


def test_what_one_machine_sent_another_has_byte_for_byte(tmp_path, shared, capsys):
    remote, place = shared
    stages, here, there = machine(tmp_path / "a"), tmp_path / "a", tmp_path / "b"
    assert [stage.directory for stage in machine(there)] == [stage.directory for stage in stages]
    for stage in stages:
        make(stage, here)
    send_missing(remote, stages, here)
    base = f"{place}/{stages[1].directory.removeprefix('results/')}"
    assert remote.files.cat_file(f"{base}/sae.bin") == b"12345"

    (left := there / stages[0].directory).mkdir(parents=True)
    (left / "half.bin").touch()  # by a killed run; no file of the finished stage
    assert fetch_missing(remote, stages, there) == 3
    for stage in stages:
        assert content(there / stage.directory) == content(here / stage.directory)
    # 5 + 3 bytes of outputs a stage: 8 / 1e6 is 0.0 MB
    assert capsys.readouterr().out.splitlines()[0] == "worlds/microworld … fetched, 0.0 MB"
    assert fetch_missing(remote, stages, there) == 0
    assert not any(remote.send(stage, there) for stage in stages)


def test_only_what_is_missing_here_is_read(tmp_path, shared, monkeypatch):
    remote, _ = shared
    stages = machine(tmp_path)
    for stage in stages[:2]:
        make(stage, tmp_path)
    send_missing(remote, stages, tmp_path)
    (tmp_path / stages[1].manifest).unlink()
    read = []
    get_file = remote.files.get_file
    monkeypatch.setattr(remote.files, "get_file", lambda a, b: (read.append(a), get_file(a, b)))
    assert fetch_missing(remote, stages, tmp_path) == 1
    assert sorted(read) == [
        remote.place(stages[1], name) for name in ("deep/rows.txt", "notebook.ipynb", "sae.bin")
    ]
    assert not is_done(stages[2], tmp_path)


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3])
def test_killed_between_files_nothing_is_half_done(tmp_path, shared, monkeypatch, stop_at):
    """Sending and fetching, stopped before file number ``stop_at`` of four (three have no sum)."""
    remote, _ = shared
    stage, *_ = machine(tmp_path / "a")
    machine(tmp_path / "b")
    make(stage, tmp_path / "a")

    def stopping(call, limit):
        count = iter(range(limit))

        def wrapped(*given):
            if next(count, None) is None:
                raise KeyboardInterrupt
            return call(*given)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(remote.files, "put_file", stopping(remote.files.put_file, stop_at))
        with pytest.raises(KeyboardInterrupt):
            remote.send(stage, tmp_path / "a")
    assert not remote.has(stage)
    assert remote.send(stage, tmp_path / "a")

    with monkeypatch.context() as patch:  # a fetch reads three files beside the manifest
        patch.setattr(remote.files, "get_file", stopping(remote.files.get_file, min(stop_at, 2)))
        with pytest.raises(KeyboardInterrupt):
            remote.fetch(stage, tmp_path / "b")
    assert not is_done(stage, tmp_path / "b")
    assert not content(tmp_path / "b" / stage.directory)
    remote.fetch(stage, tmp_path / "b")
    assert content(tmp_path / "b" / stage.directory) == content(tmp_path / "a" / stage.directory)


def manifest_with(**changes):
    def change(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), **changes}).encode()

    return change


OUTSIDE = {"../x": {"bytes": 1, "sha256": ""}}


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("sae.bin", lambda content: content[:3], "sae.bin has 3 bytes, its manifest says 5"),
        ("sae.bin", lambda content: b"1234x", "sae.bin has other content than its manifest says"),
        ("sae.bin", None, "sae.bin is missing"),
        ("notebook.ipynb", lambda content: content[:5], "notebook.ipynb is cut short"),
        ("manifest.json", lambda content: content[:9], "its manifest is cut short or foreign"),
        ("manifest.json", lambda content: b"[1]", "its manifest is cut short or foreign"),
        ("manifest.json", manifest_with(fingerprint="0"), "is that of another stage"),
        ("manifest.json", manifest_with(outputs=OUTSIDE), "a file outside its directory, '../x'"),
    ],
)
def test_damaged_stage_is_refused_and_sent_anew(tmp_path, shared, capsys, name, change, words):
    remote, _ = shared
    stage, *_ = machine(tmp_path / "a")
    machine(tmp_path / "b")
    make(stage, tmp_path / "a")
    remote.send(stage, tmp_path / "a")
    place = remote.place(stage, name)
    if change is None:
        remote.files.rm_file(place)
    else:
        remote.files.pipe_file(place, change(remote.files.cat_file(place)))

    (half := tmp_path / "b" / stage.directory).mkdir(parents=True)
    (half / "checkpoint").write_bytes(b"7")
    assert fetch_missing(remote, [stage], tmp_path / "b") == 0
    told = capsys.readouterr()
    assert words in told.err and told.err.count("\n") == 1 and told.out == ""
    assert content(half) == {"checkpoint": b"7"}  # the stage resumes from what it had
    assert not remote.has(stage)
    assert remote.send(stage, tmp_path / "a")
    assert fetch_missing(remote, [stage], tmp_path / "b") == 1


def test_a_damaged_stage_raises_before_anything_is_put_here(tmp_path, shared):
    remote, _ = shared
    stage, *_ = machine(tmp_path)
    remote.files.pipe_file(remote.place(stage, "manifest.json"), b"{")
    with pytest.raises(Damaged, match="cut short"):
        remote.fetch(stage, tmp_path)
    assert not content(tmp_path / stage.directory)


def test_unusable_url_is_one_line_before_any_work(tmp_path, capsys):
    make_root(tmp_path, {"worlds": [world()]})
    for url, words in [
        ("nope://there", "knows no protocol 'nope'"),
        ("http://user:secret@127.0.0.1:9/x", "http://127.0.0.1:9/x"),
    ]:
        given = ["all", "--profile", "tiny", "--root", str(tmp_path), "--remote", url]
        assert main(given) == 2
        told = capsys.readouterr()
        assert words in told.err and told.err.count("\n") == 1 and told.out == ""
        assert "secret" not in told.err
    assert not list(tmp_path.glob("results/tiny/worlds/*"))


@pytest.mark.parametrize(
    "url, package", [("s3://b/x", "s3fs"), ("gs://b/x", "gcsfs"), ("ssh://h/x", "paramiko")]
)
def test_missing_driver_is_named(monkeypatch, url, package):
    def missing(url):
        raise ImportError("no driver")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=rf"needs the Python package {package}: .*{package}\.$"):
        Remote(url)


def test_no_permission_is_one_line(tmp_path, shared, monkeypatch):
    remote, _ = shared
    stage, *_ = machine(tmp_path)
    make(stage, tmp_path)

    def denied(*given, **more):
        raise PermissionError("Access\nDenied")

    monkeypatch.setattr(remote.files, "put_file", denied)
    told = r"cannot be written \(PermissionError: Access Denied\); check the address"
    with pytest.raises(UserError, match=told):
        remote.send(stage, tmp_path)


def test_two_machines_share_their_work_through_a_folder(tmp_path):
    """The whole command: machine A makes and sends, B fetches, makes the rest and sends that."""
    roots = [tmp_path / "a", tmp_path / "b"]
    stages = machine(roots[0])
    machine(roots[1])

    def run(root: Path, *options: str) -> str:
        command = [sys.executable, "-m", "lab.pipeline", "all", "--profile", "tiny"]
        command += ["--root", root, "--remote", (tmp_path / "shared").as_uri(), *options]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "made 3 stages" in run(roots[0])
    base = tmp_path / "shared"
    sent = [base / stage.directory.removeprefix("results/") for stage in stages]
    for stage, place in zip(stages, sent, strict=True):
        assert content(place) == content(roots[0] / stage.directory)
    told = run(roots[1], "--dry-run").splitlines()
    assert [line.split()[:2] for line in told[:3]] == [["would", "fetch"]] * 3
    assert told[3].startswith("Profile tiny: 0 of 3 stages would be made, 3 fetched from file://")
    assert not (roots[1] / "results").exists()
    out = run(roots[1])
    assert "fetched 3 stages, made 0, put" in out and "[" not in out
    for stage in stages:
        assert content(roots[1] / stage.directory) == content(roots[0] / stage.directory)
    assert "nothing to do" in run(roots[1])

    sums = sha256(sent[2] / "figures/f.pdf")
    (sent[2] / "manifest.json").unlink()  # as if A had been killed while it sent
    (sent[2] / "figures/f.pdf").unlink()
    assert "nothing to do" in run(roots[1])
    assert sha256(sent[2] / "figures/f.pdf") == sums
    assert content(sent[2]) == content(roots[0] / stages[2].directory)
