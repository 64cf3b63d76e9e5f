"""Finished stages kept at a URL that fsspec can read: fetched whole or not at all, sent once.

A stage lies at ``URL/<profile>/<stage>-<fingerprint>/`` with its manifest, the executed notebook and
every output that the manifest lists. The manifest is sent last, so what has one is complete; what
is fetched is checked against it, size and SHA-256, before it takes the stage's place in one step.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from lab.pipeline.alone import only_run, remove_unfinished
from lab.pipeline.execution import is_done
from lab.pipeline.provenance import read_manifest
from lab.pipeline.stages import Stage
from tsae.errors import UserError
from tsae.files import atomic, disk_full_is_clear, sha256

MANIFEST, NOTEBOOK = "manifest.json", "notebook.ipynb"
FSSPEC_OWN = {"sftp": "paramiko", "ssh": "paramiko", "http": "aiohttp", "https": "aiohttp"}
"""What the drivers that come with fsspec need; the others are packages of their own."""


class Damaged(Exception):
    """A stage at the remote is truncated or foreign; the message says how."""


class Remote:
    """A place for finished stages. Raises :class:`UserError` for a URL that cannot be used."""

    def __init__(self, url: str) -> None:
        self.shown = re.sub(r"//[^/@]*@", "//", url)  # a password in the URL is not for a log
        protocol = url.partition("://")[0] if "://" in url else "file"
        with self.clear("be opened"):
            try:
                self.files, self.base = fsspec.core.url_to_fs(url)
            except ImportError:
                package = FSSPEC_OWN.get(protocol) or driver(protocol)
                raise UserError(
                    f"--remote {self.shown} needs the Python package {package}: "
                    f".venv/bin/python -m pip install {package}."
                ) from None
            except ValueError:
                if protocol in known_implementations:
                    raise
                raise UserError(
                    f"--remote {self.shown}: fsspec knows no protocol {protocol!r}; "
                    "take file, s3, gs, abfs, ssh or another one of its list."
                ) from None
        # jobs may start in another directory
        self.url = f"file://{self.base}" if isinstance(self.files, LocalFileSystem) else url

    @contextmanager
    def clear(self, what: str) -> Iterator[None]:
        """Turn whatever a driver raises inside the block into one sentence."""
        try:
            yield
        except (UserError, Damaged):
            raise
        except Exception as error:  # every driver has its own: botocore, paramiko, aiohttp …
            reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":. ")
            raise UserError(
                f"--remote {self.shown} cannot {what} ({reason}); check the address, the connection "
                "and your rights there."
            ) from error

    def place(self, stage: Stage, name: str) -> str:
        """Path of one of the stage's files on the remote's file system."""
        return f"{self.base.rstrip('/')}/{stage.directory.removeprefix('results/')}/{name}"

    def has(self, stage: Stage) -> bool:
        """Whether the stage's manifest is there."""
        with self.clear("be read"):
            self.files.invalidate_cache()  # another machine may have sent it since
            return bool(self.files.exists(self.place(stage, MANIFEST)))

    def fetch(self, stage: Stage, root: Path) -> int:
        """Put the stage into ``root`` as it is there and return its bytes.

        Raises :class:`Damaged`, and leaves what is here as it was, if it is not whole;
        :class:`UserError` without connection or room.
        """
        directory = root / stage.directory
        with self.clear("be read"):
            content = self.files.cat_file(self.place(stage, MANIFEST))
            outputs = listed(content, stage)
            with only_run(directory, f"stage {stage.name}"):
                remove_unfinished(directory.parent.glob(f"{directory.name}.*"))
                with atomic(directory) as temporary:
                    for name, record in outputs.items():
                        self.get(stage, name, temporary / name)
                        compare(temporary / name, name, record)
                    if stage.notebook:
                        self.get(stage, NOTEBOOK, temporary / NOTEBOOK)
                        with whole(NOTEBOOK):  # manifests do not list it
                            json.loads((temporary / NOTEBOOK).read_bytes())
                    (temporary / MANIFEST).write_bytes(content)
        return sum(record["bytes"] for record in outputs.values())

    def get(self, stage: Stage, name: str, target: Path) -> None:
        """One file of a stage into ``target``."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with disk_full_is_clear(target.parent):
                self.files.get_file(self.place(stage, name), str(target))
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None

    def send(self, stage: Stage, root: Path) -> bool:
        """Send a stage that is done here, its manifest last; False if it was there already."""
        if self.has(stage):
            return False
        directory = root / stage.directory
        names = list(read_manifest(directory)["outputs"])
        with self.clear("be written"):
            for name in [*names, *([NOTEBOOK] if stage.notebook else []), MANIFEST]:
                place = self.place(stage, name)
                self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
                self.files.put_file(str(directory / name), place)
        return True

    def withdraw(self, stage: Stage) -> None:
        """Take back the manifest of a damaged stage, so that it is sent anew."""
        with self.clear("be written"):
            self.files.rm_file(self.place(stage, MANIFEST))


def fetch_missing(remote: Remote, stages: Sequence[Stage], root: Path) -> int:
    """Fetch those of ``stages`` that are done there and not here; return how many.

    One that is damaged there is refused in one line and withdrawn: it is made here and sent again.
    """
    fetched = 0
    for stage in stages:
        if is_done(stage, root) or not remote.has(stage):
            continue
        try:
            size = remote.fetch(stage, root)
        except Damaged as damage:
            remote.withdraw(stage)
            refused = f"stage {stage.name} at {remote.shown} is refused: {damage}"
            print(f"{refused}; it is made here.", file=sys.stderr, flush=True)
        else:
            fetched += 1
            print(f"{stage.name} … fetched, {size / 1e6:.1f} MB", flush=True)
    return fetched


def send_missing(remote: Remote, stages: Sequence[Stage], root: Path) -> None:
    """Send those of ``stages`` that are done here and not there."""
    for stage in stages:
        if is_done(stage, root):
            remote.send(stage, root)


def driver(protocol: str) -> str:
    """The package on PyPI that reads ``protocol``."""
    package = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
    return package if package not in ("", "fsspec") else f"fsspec[{protocol}]"


def listed(content: bytes, stage: Stage) -> dict[str, dict[str, Any]]:
    """The outputs in a manifest from elsewhere; :class:`Damaged` if it is not this stage's."""
    with whole("its manifest"):
        manifest = json.loads(content)
        outputs, fingerprint = dict(manifest["outputs"]), manifest["fingerprint"]
        for name, record in outputs.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise Damaged(f"its manifest names a file outside its directory, {name!r}")
            if not isinstance(record["bytes"], int) or not isinstance(record["sha256"], str):
                raise TypeError
    if fingerprint != stage.fingerprint:
        raise Damaged("its manifest is that of another stage")
    return outputs


@contextmanager
def whole(what: str) -> Iterator[None]:
    """Raise :class:`Damaged` when ``what``, read inside the block, is not what it should be."""
    try:
        yield
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{what} is cut short or foreign") from None


def compare(file: Path, name: str, record: dict[str, Any]) -> None:
    """Raise :class:`Damaged` unless ``file`` has the size and the SHA-256 of its record."""
    if (size := file.stat().st_size) != record["bytes"]:
        raise Damaged(f"{name} has {size} bytes, its manifest says {record['bytes']}")
    if sha256(file) != record["sha256"]:
        raise Damaged(f"{name} has other content than its manifest says")
