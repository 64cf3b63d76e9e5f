"""The lexical explainer by hand, and the hook for a service against a stub on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from eval_cases import Fake, Store, value

from lab.measures.concepts import autointerp
from lab.measures.concepts.autointerp import Text
from lab.measures.concepts.endpoint import Endpoint
from tsae.errors import UserError

# ---- the lexical explainer ----------------------------------------------------------------


def test_rates_are_smoothed_towards_the_prior():
    active = np.array([[1.0], [1], [0], [0]])
    keys, rate = autointerp.rates(np.array([7, 7, 7, 9]), active, np.array([0.5]))
    assert keys.tolist() == [7, 9]
    assert rate[:, 0].tolist() == pytest.approx([(2 + 2.5) / 8, (0 + 2.5) / 6])


def corpus():
    """Latent 0 fires on token 3, latent 1 on token 4 after token 2, over 400 tokens."""
    generator = np.random.default_rng(0)
    token = generator.integers(0, 6, 400)
    previous = np.concatenate([[-1], token[:-1]])
    z = np.stack([token == 3, (token == 4) & (previous == 2)], 1).astype(float)
    return Text(token, previous, z)


def test_words_and_pairs_are_found_and_scored():
    text = corpus()
    word, pair = autointerp.explain(text, size=1)
    assert list(word.tokens) == [3] and list(pair.pairs) == [(2, 4)]
    n = (text.token_N == 3).sum()
    assert word.tokens[3] == pytest.approx((n + 5 * n / 400) / (n + 5))
    assert autointerp.detection(word, text, text.z_NL[:, 0] > 0) == (1.0, 1.0)
    # Its words alone say "active" at every 4; the pair does not, yet the word is kept too.
    found, area = autointerp.detection(pair, text, text.z_NL[:, 1] > 0)
    quiet = text.z_NL[:, 1] == 0
    assert found == pytest.approx((1 + (text.token_N[quiet] != 4).mean()) / 2)
    assert area == 1.0  # the pair's rate stands above the word's


def test_a_latent_that_no_word_tells_is_near_chance():
    text = corpus()
    blind = text._replace(z_NL=np.random.default_rng(1).integers(0, 2, (400, 1)).astype(float))
    (explanation,) = autointerp.explain(blind, size=2)
    held_out = text._replace(z_NL=np.random.default_rng(2).integers(0, 2, (400, 1)).astype(float))
    found, area = autointerp.detection(explanation, held_out, held_out.z_NL[:, 0] > 0)
    assert abs(found - 0.5) < 0.08 and abs(area - 0.5) < 0.08


class World:
    def to_strings(self, tokens):
        return [f"w{int(v)}" for v in tokens]


class WordStore(Store):
    """x has the token's own direction: token v of 8 is e_v."""

    def batches(self, split, batch_size, shuffle=False, seed=0):
        for batch in super().batches(split, batch_size):
            batch.tokens_BT = batch.tokens_BT % 8
            batch.x_BTD = torch.eye(8)[batch.tokens_BT]
            yield batch


def measured(**options):
    sae = Fake(lambda x, _: x, 8, groups={"all": torch.arange(8), "odd": torch.tensor([1, 3])})
    reading = {"limit_tokens": 400, "selection_tokens": 400, "batch_size": 8, "seed": 0}
    return autointerp.measure(
        {"words": sae}, WordStore(), World(), **reading, device="cpu", progress=False, **options
    )["words"]


def test_latents_of_words_are_told_by_words():
    found = measured(size=1)
    assert value(found.rows, "detection") == 1.0
    assert value(found.rows, "explained_by_words", "odd") == 1.0
    assert [r["n"] for r in found.rows if r["metric"] == "detection"] == [8, 2]
    table = found.tables["explanations"]
    assert table["words"].tolist() == [f"w{i}" for i in range(8)]


# ---- the service --------------------------------------------------------------------------


@pytest.fixture
def stub():
    """A service that answers with what ``server.answer(prompt)`` gives, and keeps the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((self.path, self.headers.get("Authorization"), body))
            reply = server.answer(body["messages"][0]["content"])
            self.send_response(200 if reply is not None else 401)
            self.end_headers()
            choices = [{"message": {"role": "assistant", "content": reply}}]
            self.wfile.write(json.dumps({"choices": choices}).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def address(server):
    return f"http://127.0.0.1:{server.server_port}/v1/"


SHOWN = [("a <<cat>>", True), ("a <<dog>>", False)]
ASKED = [("b <<cat>>", True), ("c <<cat>>", True), ("d <<cow>>", False), ("e <<hen>>", False)]


def test_a_service_is_asked_twice_and_scored(stub, monkeypatch):
    monkeypatch.setenv("STUB_KEY", "k-1")
    stub.answer = lambda prompt: "cats" if prompt.startswith("A neuron") else "They are [0, 2]."
    # Sorted: b cat, c cat, d cow, e hen. It says 0 and 2: one of two right on each side.
    asked = Endpoint(address(stub), "stub-1", "STUB_KEY")
    assert asked.detection(SHOWN, ASKED) == 0.5
    (path, key, first), (_, _, second) = stub.seen
    assert path == "/v1/chat/completions" and key == "Bearer k-1"
    assert first["model"] == "stub-1" and first["temperature"] == 0
    assert "fires: a <<cat>>\nsilent: a <<dog>>" in first["messages"][0]["content"]
    text = second["messages"][0]["content"]
    assert "neuron fires: cats" in text and "0: b <<cat>>" in text and "3: e <<hen>>" in text


def test_the_family_uses_a_service_where_one_is_given(stub):
    def knows(prompt):  # explains by the word, then lists the texts that end in it
        if prompt.startswith("A neuron"):
            return next(line for line in prompt.splitlines() if line.startswith("fires")).split()[
                -1
            ]
        word = prompt.split("neuron fires: ")[1].split()[0]
        texts = prompt.split("\n\n")[-1].splitlines()
        return json.dumps([i for i, text in enumerate(texts) if text.endswith(word)])

    stub.answer = knows
    found = measured(endpoint={"url": address(stub), "model": "m"}, endpoint_latents=2)
    assert value(found.rows, "detection_endpoint") == 1.0
    assert [r["n"] for r in found.rows if r["metric"] == "detection_endpoint"][0] == 2
    assert len(stub.seen) == 4


@pytest.mark.parametrize(
    ("answer", "needle"),
    [(None, "gave no usable answer .*401"), ("no idea", "no list of numbers but 'no idea'")],
)
def test_a_service_that_fails_is_one_sentence(stub, answer, needle):
    stub.answer = lambda _: answer
    with pytest.raises(UserError, match=needle) as error:
        Endpoint(address(stub), "m").detection(SHOWN, ASKED)
    assert "\n" not in str(error.value)


def test_an_address_or_key_that_cannot_be_is_told_at_once(monkeypatch):
    monkeypatch.delenv("STUB_KEY", raising=False)
    with pytest.raises(UserError, match="begin it with https"):
        Endpoint("localhost:1", "m")
    with pytest.raises(UserError, match="holds no STUB_KEY"):
        Endpoint("http://localhost:1", "m", "STUB_KEY")
