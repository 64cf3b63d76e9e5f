"""A language model behind an OpenAI-compatible service, as explainer and judge of latents."""

import json
import os
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from tsae.errors import UserError

EXPLAIN = (
    "A neuron of a language model fires on the token in << >> at the end of the first texts and "
    "not at the end of the others. Say in one short sentence on what it fires.\n\n"
)
DETECT = (
    "On what a neuron fires: {}\n\nGive, as a JSON list of numbers, the texts whose last token, in "
    "<< >>, it fires on.\n\n"
)


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. Raises :class:`UserError` when it cannot be reached or answers nonsense."""

    url: str
    """Base address, to which ``/chat/completions`` is added."""
    model: str
    """Name of the model, as the service knows it."""
    key_env: str | None = None
    """Environment variable that holds the key; None where none is needed."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"The endpoint {self.url!r} is no address; begin it with https://.")
        if self.key_env and self.key_env not in os.environ:
            raise UserError(
                f"The environment holds no {self.key_env}; put the endpoint's key there."
            )

    def ask(self, prompt: str) -> str:
        """The answer to one prompt, at temperature 0."""
        message = {"role": "user", "content": prompt}
        body = {"model": self.model, "messages": [message], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        url = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"The endpoint {url} gave no usable answer ({reason}); check its address and key."
            ) from None

    def detection(
        self, shown: Sequence[tuple[str, bool]], asked: Sequence[tuple[str, bool]]
    ) -> float:
        """Balanced accuracy on ``asked`` of an explanation from ``shown``: (text, fires) each."""
        texts = sorted(shown, key=lambda pair: not pair[1])
        lines = [f"{'fires' if fires else 'silent'}: {text}" for text, fires in texts]
        explanation = self.ask(EXPLAIN + "\n".join(lines))
        # Sorted by text, so that the order gives nothing away.
        asked = sorted(asked)
        numbered = "\n".join(f"{i}: {text}" for i, (text, _) in enumerate(asked))
        answer = self.ask(DETECT.format(explanation) + numbered)
        listed = re.search(r"\[[\d\s,]*\]", answer)
        if listed is None:
            raise UserError(f"The model {self.model} gave no list of numbers but {answer[:80]!r}.")
        chosen = {int(number) for number in re.findall(r"\d+", listed[0])}
        right: dict[bool, list[bool]] = {True: [], False: []}
        for i, (_, fires) in enumerate(asked):
            right[fires].append((i in chosen) == fires)
        if not all(right.values()):
            raise ValueError("asked must hold texts of both kinds")
        return sum(sum(r) / len(r) for r in right.values()) / 2
