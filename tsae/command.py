"""What the command lines share: errors in one line, values as JSON."""

import argparse
import json
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse without its usage block: an error is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help.\n")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def named_value(text: str) -> tuple[str, Any]:
    """``name=value`` with the value as JSON, or as it stands where it is none (``gate=hard``)."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
