"""Where the time of a whole profile goes, by sampling it while it runs.

    pip install py-spy  # a sampler that reads the stacks of processes it does not change
    py-spy record --subprocesses --nonblocking --rate 20 --duration 100000 --format raw \\
        --output stacks.txt -- .venv/bin/python -m lab.pipeline all --profile laptop
    python benchmarks/stages.py stacks.txt [MORE.txt ...] [--rate 20] [--top 10] [--out FILE.json]

Only samples in which a notebook's cell is at work count; a sample is 1 / rate seconds of one
process, waiting left out. Printed: the largest costs by our own function (the innermost frame in
``tsae``, with all that it calls in other libraries), what it spends them in (the innermost frame of
all), and the share of each notebook.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CELL = "run_code (IPython/core/interactiveshell.py"
OURS = re.compile(r"(?:^|[ (/])(?:tsae|lab)/[\w/]+\.py")
LINE = re.compile(r":\d+\)$")


class Costs(NamedTuple):
    """Samples by what they were spent on."""

    ours: Counter
    inside: dict[str, Counter]
    """For each of ours: samples by innermost frame."""
    total: int


def read(lines: Iterable[str]) -> Costs:
    """Stacks as py-spy writes them, ``outermost;…;innermost count`` a line."""
    ours: Counter = Counter()
    inside: dict[str, Counter] = defaultdict(Counter)
    for line in lines:
        stack, _, count = line.rstrip().rpartition(" ")
        if CELL not in stack:
            continue
        frames = [LINE.sub(")", frame) for frame in stack.split(";")]
        own = next((frame for frame in reversed(frames) if OURS.search(frame)), "the notebooks")
        ours[own] += int(count)
        inside[own][frames[-1] if frames[-1] != own else "itself"] += int(count)
    return Costs(ours, inside, sum(ours.values()))


def main() -> None:
    """Read the stacks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stacks", nargs="+", type=Path, help="what py-spy wrote, format raw")
    parser.add_argument("--rate", type=float, default=20, help="samples a second")
    parser.add_argument("--top", type=int, default=10, help="functions printed")
    parser.add_argument("--out", help="where to write the numbers as JSON")
    args = parser.parse_args()
    costs = read(line for path in args.stacks for line in path.read_text().splitlines())
    if not costs.total:
        parser.error("no sample of a notebook's cell in these files: record with --subprocesses")
    print(f"{costs.total / args.rate:.0f} s of notebooks' cells at work")
    rows = []
    for function, samples in costs.ours.most_common(args.top):
        largest = [(where, n / samples) for where, n in costs.inside[function].most_common(3)]
        spent = ", ".join(f"{where} {share:.0%}" for where, share in largest)
        seconds = samples / args.rate
        rows.append({"function": function, "seconds": seconds, "in": largest})
        print(f"{seconds:8.0f} s {samples / costs.total:5.1%}  {function}: {spent}")
    if args.out:
        Path(args.out).write_text(json.dumps({"seconds": costs.total / args.rate, "rows": rows}))


if __name__ == "__main__":
    main()
