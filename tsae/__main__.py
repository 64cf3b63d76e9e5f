"""Command line: ``python -m tsae train``; data parallel under ``torchrun``.

    python -m tsae train --setting DIR --out DIR --variant conv --k 12 --d-sae 512 --steps 900 --lr 2e-3
    torchrun --nproc-per-node 2 -m tsae train ...

``--setting`` is what ``make_setting`` or a stage of ``01_worlds`` left; several variants train one
after another, each into a folder of ``--out``. The same command goes on where it was stopped.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from tsae.command import Parser, named_value, positive
from tsae.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = Parser(prog="tsae", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train variants on a store")
    train.add_argument("--setting", type=Path, required=True, help="folder of world and store")
    train.add_argument("--out", type=Path, required=True, help="where each variant's folder goes")
    train.add_argument("--variant", nargs="+", required=True, help="names of tsae.saes.names()")
    train.add_argument("--k", type=positive, required=True, help="active latents per token")
    train.add_argument("--d-sae", type=positive, required=True, help="latents")
    train.add_argument("--steps", type=positive, required=True, help="optimiser steps")
    train.add_argument("--lr", type=float, required=True, help="peak learning rate")
    train.add_argument("--act", help="activation; default: the variant's")
    train.add_argument("--seed", type=int, default=0, help="of weights and data order")
    given: dict[str, Any] = {
        "nargs": "+",
        "type": named_value,
        "metavar": "NAME=VALUE",
        "default": [],
    }
    train.add_argument("--option", help="fields of the variant's config", **given)
    train.add_argument("--train", help="further fields of TrainConfig", **given)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 for one clear line on stderr."""
    given = parser().parse_args(arguments)
    # Imported late, since these take seconds that a misspelled option need not wait for.
    from tsae.store import ActivationStore
    from tsae.training import distributed
    from tsae.training.config import TrainConfig
    from tsae.training.runs import run_training

    shared = {
        "k": given.k, "d_sae": given.d_sae, "steps": given.steps, "lr": given.lr, "act": given.act,
        "seed": given.seed, "options": dict(given.option), **dict(given.train),
    }  # fmt: skip
    with distributed.ranks(str(dict(given.train).get("device", "cpu"))):
        first = distributed.rank() == 0
        try:
            known = [field.name for field in dataclasses.fields(TrainConfig)]
            for name in dict(given.train).keys() - known:
                raise UserError(f"no trainer field {name!r}; choose one of {', '.join(known)}.")
            store = ActivationStore.open(given.setting / "store", verify="size")
            for name in given.variant:
                place = given.out / name
                result = run_training(store, place, variant=name, progress=first, **shared)
                if first:
                    print(f"{place}/sae: {result.sae.name}, {result.last}")
        except (UserError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
