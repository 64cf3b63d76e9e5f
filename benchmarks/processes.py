"""Worker processes of this environment and of the peers', spoken to by JSON lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).resolve().parent / "worker.py"


class Worker:
    """One library in a process of its own (see ``worker.py``)."""

    def __init__(self, python: str, spec: dict):
        threads = str(spec.get("threads", 1))
        env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        env |= {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        self.name = f"{spec['library']} {spec['method']}"
        self.process = subprocess.Popen(
            [python, str(WORKER), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.answer()

    def answer(self) -> dict:
        """The next answer; ends this program in one line if the worker has died."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"The worker of {self.name} ended (its message is above).")
        return json.loads(line)

    def ask(self, **command) -> dict:
        """Send one command and wait for its answer."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
