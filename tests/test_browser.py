"""The feature browser: every number it shows, worked out by hand, on three sequences."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from lab import browser
from lab.browser.latents import BrowserConfig, choose, view_latents
from tsae import saes
from tsae.errors import UserError
from tsae.sequences import LabelSpec, SequenceContext
from tsae.store import Batch

# Codes of latents 0, 1, 2 at positions 1 … 8 of three sequences; position 0 is BOS.
CODES = [
    [[0, 1, 0, 0, 1, 0, 0, 0], [0, 0, 2, 2, 0, 3, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]],
    [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 4, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]],
    [[0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]],
]


class Store:
    fingerprint, layer, seq_len, scale = "f", 1, 9, 1.0

    def batches(self, split, batch_size):
        x_BTD = torch.zeros(3, 9, 3)
        x_BTD[:, 1:] = torch.tensor(CODES).float().transpose(1, 2)
        x_BTD[:, 0] = 100.0  # BOS, masked
        mask_BT = torch.ones(3, 9, dtype=torch.bool)
        mask_BT[:, 0] = False
        boundary_BT = torch.zeros(3, 9, dtype=torch.uint8)
        boundary_BT[:, :2] = 3
        doc_BT = torch.arange(3)[:, None].expand(3, 9).clone()
        doc_BT[:, 0] = -1
        doc_BT[0, 7:], boundary_BT[0, 7] = 9, 3  # a document that follows
        tokens_BT = torch.arange(27).view(3, 9)
        for rows in torch.arange(3).split(batch_size):
            context = SequenceContext(mask_BT[rows], boundary_BT[rows])
            label_BT = doc_BT[rows].clamp_max(1).to(torch.int16)  # the first document, and others
            labels = {"topic": label_BT, "pos": label_BT}
            yield Batch(x_BTD[rows], tokens_BT[rows], doc_BT[rows], context, labels)


W_U = torch.tensor([[3.0, 0, 0, 1], [0, 0, 0, 4], [0, 0, 0, 0]])
WORLD = SimpleNamespace(
    name="<world>",
    fingerprint="f",
    label_specs={
        "topic": LabelSpec("topic", "document", ("first", "<other>")),
        "pos": LabelSpec("pos", "token", ("first", "other")),
    },
    to_strings=lambda ids: [f" <b>{i}\n&" for i in ids],
    model=lambda device: SimpleNamespace(unembed=SimpleNamespace(W_U=W_U)),
)


@pytest.fixture
def sae():
    """z = relu(x)."""
    sae = saes.build("l1", d_in=3, d_sae=3, k=1)
    with torch.no_grad():
        for weight in (sae.W_enc, sae.W_dec):
            weight.copy_(torch.eye(3))
    return sae.eval()


OPTIONS = {"before": 2, "after": 1, "n_tokens": 1, "min_count": 2, "max_lag": 2, "batch_size": 2}


@pytest.fixture
def one(sae):
    config = BrowserConfig(**OPTIONS)
    return view_latents(sae, Store(), WORLD, [1], config)[0]


def test_contexts_are_the_strongest_of_each_sequence_inside_their_document(one):
    assert [(c.doc, c.values) for c in one.contexts] == [
        (1, [0, 1 * 0, 4, 0]),
        (0, [2, 0, 3]),  # the next document begins right after
        (2, [0, 0, 1, 1]),
    ]
    assert [c.values[c.peak] for c in one.contexts] == [4, 3, 1] and one.peak == 4
    # The stay is the code over the whole document, whatever the window.
    assert [c.stay for c in one.contexts] == [
        [0, 0, 4, 0, 0, 0, 0, 0],
        [0, 0, 2, 2, 0, 3],
        [0] * 5 + [1] * 3,
    ]
    assert one.contexts[1].strings == [" <b>4\n&", " <b>5\n&", " <b>6\n&"]


def test_times_are_those_of_the_runs(one):
    # Runs of 2, 1 (cut off by the document), 1 and 3 (cut off by the end of the text).
    assert one.dwell == [(1, 2), (2, 1), (3, 1)] and one.n_runs == 4
    # S(1) = 1 − 1/3, S(2) = 2/3 · (1 − 1/1) = 0: one run is at risk at 2, one was last seen there.
    assert one.half_life == 2
    assert one.density == pytest.approx(7 / 24)


def test_neighbours_are_counted_between_starts_of_one_piece(sae):
    config = BrowserConfig(**OPTIONS)
    zero, one, silent = view_latents(sae, Store(), WORLD, [0, 1, 2], config)
    # Latent 0 starts 4 times in 24 tokens; latent 1 starts 4 times, each just after it.
    (before,) = one.predecessors
    assert before[:3] == (0, 1, 1.0) and before.times == 4
    assert before.lift == pytest.approx(4 / (4 * 4 / 24))
    (after,) = zero.successors
    assert after[:3] == (1, 1, 1.0) and after.times == 4
    assert one.successors == [] and zero.predecessors == []
    assert silent.contexts == [] and silent.n_runs == 0 and silent.density == 0


def test_latents_are_named_by_the_tokens_at_which_they_are_strongest(sae):
    zero, one, silent = view_latents(sae, Store(), WORLD, [0, 1, 2], BrowserConfig(**OPTIONS))
    # Latent 1: 4 in the second sequence, 3 in the first, 1 in the third, each at its first peak.
    assert one.name == "<b>12\n& · <b>6\n& · <b>24\n&"
    assert silent.name == ""
    assert one.predecessors[0].name == zero.name and zero.successors[0].name == one.name


def test_logit_effects_are_the_unembedding_of_the_direction(sae):
    config = BrowserConfig(**OPTIONS)
    zero, one = view_latents(sae, Store(), WORLD, [0, 1], config)
    assert zero.raised == [(" <b>0\n&", 2.0)] and zero.lowered[0][1] == -1.0  # mean of 3 and 1 is 1
    assert one.raised == [(" <b>3\n&", 3.0)]


def test_chosen_latents_fire_and_are_not_dense(sae, monkeypatch):
    config = BrowserConfig(n_latents=2)
    assert choose(sae, Store(), config) == []  # both fire on over a tenth of the tokens
    monkeypatch.setattr("lab.browser.latents.USUAL", 0.5)
    assert choose(sae, Store(), config) == [0, 1]
    assert choose(sae, Store(), BrowserConfig(n_latents=1)) == [1]


def test_slow_latents_come_first_and_may_be_on_for_long(sae, monkeypatch):
    groups = {"document": torch.tensor([1, 2]), "fast": torch.tensor([0])}
    monkeypatch.setattr(type(sae), "groups", property(lambda self: groups))
    # Latent 1 is on at 7 of 27 places, too often for any but a slow group; 0 at 4.
    assert choose(sae, Store(), BrowserConfig(n_latents=4)) == [1]
    monkeypatch.setattr("lab.browser.latents.USUAL", 0.2)
    assert choose(sae, Store(), BrowserConfig(n_latents=4)) == [1, 0]


class Reader(HTMLParser):
    """The text and the tags of a page."""

    def __init__(self):
        super().__init__()
        self.texts, self.tags, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag == "rect" or self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_needs_nothing_else_and_escapes_its_text(sae, tmp_path):
    path = browser.write_browser(sae, Store(), WORLD, tmp_path / "b.html", [0, 1, 2], **OPTIONS)
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"img", "link", "iframe"} and "<b>6" not in text
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert not re.search(r"https?:|url\(|@import|src=", text)
    assert all(a["href"].startswith("#latent-") for tag, a in reader.tags if tag == "a")
    assert " <b>6↵&" in reader.texts and "<world>" in "".join(reader.texts)
    # Latent 1's two strongest documents: 4 at full height, then 2, 2 and 3 of 4.
    heights = [a["height"] for tag, a in reader.tags if tag == "rect"]
    assert heights[-4:] == ["1.000", "0.500", "0.500", "0.750"]
    peaks = [a for tag, a in reader.tags if a.get("class") == "peak"]
    assert [a["title"] for a in peaks] == ["1.000"] * 3 + ["4.000", "3.000", "1.000"]
    assert "rgba(var(--hot), 0.90)" in peaks[3]["style"]


def test_what_cannot_be_shown(sae, tmp_path):
    for options, line in [
        ({"latents": [3]}, "latents=.3. is not allowed; latents must be distinct ids from 0 to 2"),
        ({"latents": []}, "distinct ids from 0 to 2, at least one"),
        ({"n_contexts": 0}, "n_contexts=0 is not allowed"),
        ({"colour": "red"}, "colour is not an option of BrowserConfig; allowed are n_latents, "),
    ]:
        options = {"latents": [0], **options}
        with pytest.raises(ValueError, match=line):
            browser.write_browser(sae, Store(), WORLD, tmp_path / "b.html", **options)
    other = SimpleNamespace(**(vars(WORLD) | {"fingerprint": "g"}))
    with pytest.raises(UserError, match="The store is of another world than <world>"):
        browser.write_browser(sae, Store(), other, tmp_path / "b.html", [0])
    assert not (tmp_path / "b.html").exists()
    with pytest.raises(UserError, match="is a directory; give the path of a file"):
        browser.write_browser(sae, Store(), WORLD, tmp_path, [0])
    assert list(tmp_path.iterdir()) == []


def test_a_topic_is_what_contexts_share_beyond_its_share_of_all_tokens(sae):
    """One of three strongest tokens lies in the first document, and 6 of all 24; latent 2 is silent."""
    views = view_latents(sae, Store(), WORLD, [0, 1, 2])
    first = "topic first in 1 of 3 (of all tokens 25%)"
    assert [view.topic for view in views] == [first, first, ""]
