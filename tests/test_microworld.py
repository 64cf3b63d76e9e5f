"""Laws of the microworld: its text, labels, procedures, facts, tasks, and its model's training."""

import itertools
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from lab import worlds
from lab.worlds import knowledge, tasks
from lab.worlds.base import Document, pack
from lab.worlds.microworld import chains as microworld_chains
from lab.worlds.microworld import model as microworld_model
from lab.worlds.microworld import words as w
from lab.worlds.microworld.config import MicroworldConfig
from lab.worlds.microworld.facts import KIND, fill
from lab.worlds.microworld.text import LABELS, MicroworldText
from lab.worlds.microworld.writer import Draw
from tsae.errors import CheckpointError, WorldError

SMALL = {"n_train_docs": 300, "n_test_docs": 100, "n_entities": 8}
TINY = dict(
    n_train_docs=24, n_test_docs=12, n_entities=4, n_layers=2, layer=1, d_model=16, n_heads=2,
    seq_len=48, steps=7, batch_size=4, checkpoint_every=3, option_orders=1, min_accuracy=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def text():
    return MicroworldText(MicroworldConfig(**SMALL))


@pytest.fixture(scope="module")
def documents(text):
    return list(text.documents("train"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tiny") / "world")


def build(directory, **options):
    return worlds.build("microworld", directory, progress=False, **TINY | options)


def words_of(text, document):
    return [text.vocabulary.words[token] for token in document.tokens]


def written(**options):
    return list(MicroworldText(MicroworldConfig(**SMALL | options)).documents("train"))


def test_documents_are_the_seeds_alone_and_in_one_split(text, documents):
    every = [*documents, *text.documents("test"), *text.documents("validation")]
    assert [d.id for d in every] == list(range(500))
    assert len({d.tokens.tobytes() for d in every}) == 500
    for first, second, third in zip(documents, written(), written(seed=1), strict=True):
        assert np.array_equal(first.tokens, second.tokens)
        assert all(np.array_equal(first.labels[k], second.labels[k]) for k in LABELS)
        assert not np.array_equal(first.tokens, third.tokens)


def test_boundaries_nest_sentences_end_and_slow_labels_hold_throughout(text, documents):
    for d in documents:
        assert d.boundary[0] == 3 and (d.boundary[1:] < 3).all()
        for name, spec in LABELS.items():
            values = d.labels[name]
            assert values.shape == d.tokens.shape and values.max() < len(spec.classes)
            changes = np.flatnonzero(np.diff(values)) + 1
            if spec.scale == "document":
                assert len(changes) == 0 and values[0] >= 0
            if spec.scale == "section":
                assert (d.boundary[changes] >= 2).all(), name
        words = words_of(text, d)
        starts = set(np.flatnonzero(d.boundary))
        ends = {i + 1 for i, word in enumerate(words) if word in (".", "?")}
        assert starts - {0} == ends - {len(words)}


def test_token_labels_agree_with_the_words(text, documents):
    nouns = [n for d in w.DOMAINS.values() for n in (d.group, *d.nouns)]
    plural = {n.singular: False for n in nouns} | {n.plural: True for n in nouns}
    seen = set()
    for d in documents:
        for i, word in enumerate(words_of(text, d)):
            pos, agreement, gender = w.LEXICON[word]
            number = d.labels["agreement"][i]
            assert LABELS["pos"].classes[d.labels["pos"][i]] == pos
            assert (None if number < 0 else w.AGREEMENT[number]) == agreement
            assert number == plural.get(word, number)
            if word in ("she", "her", *w.WOMEN):
                assert w.GENDER[d.labels["gender"][i]] == "feminine"
            seen.add(pos)
    assert seen >= set(w.POS) - {"number"}


def test_verbs_agree_with_the_focus_that_the_section_is_about(text, documents):
    """In a story, a pronoun before a present verb form has that form's number."""
    checked = 0
    for d in documents:
        words = words_of(text, d)
        for pronoun, verb in itertools.pairwise(words):
            if pronoun in ("she", "he", "they") and w.LEXICON[verb][1] is not None:
                assert w.LEXICON[verb][1] == ("plural" if pronoun == "they" else "singular")
                checked += 1
    assert checked > 50


def test_focus_and_number_and_tense_can_be_read_in_the_text(text, documents):
    stories = 0
    for d in documents:
        words = np.array(words_of(text, d))
        starts = [*np.flatnonzero(d.boundary >= 2), len(words)]
        for start, stop in itertools.pairwise(starts):
            focus = d.labels["focus"][start]
            assert (focus >= 0) == (LABELS["theme"].classes[d.labels["theme"][start]] == "story")
            if focus >= 0:
                name = LABELS["focus"].classes[focus]
                assert name in words[start:stop][:5]
                assert d.labels["number"][start] == (w.LEXICON[name][1] == "plural")
                stories += 1
            copulas = {"was", "were"} & set(words[start:stop])
            if copulas:
                assert d.labels["tense"][start] == 1
    assert stories > 50


def step_starts(document):
    """(position, class) of every step's first token, section by section."""
    step = document.labels["step"]
    first = np.flatnonzero((step >= 0) & (np.r_[-1, step[:-1]] != step))
    section = np.cumsum(document.boundary >= 2)
    return [(int(i), int(section[i]), LABELS["step"].classes[step[i]]) for i in first]


def test_chains_are_found_in_the_text_at_their_lags_and_with_their_weights(text):
    config = MicroworldConfig(n_train_docs=3000)
    edges = {(e.source, e.target): e for e in microworld_chains.edges(1.0)}
    sources = {e.source for e in edges.values()}
    taken, occurred = Counter(), Counter()
    for document in MicroworldText(config).documents("train"):
        starts = [s for s in step_starts(document) if s[2] not in microworld_chains.LOOSE_STEPS]
        for (i, section, step), following in itertools.zip_longest(starts, starts[1:]):
            occurred[step] += 1
            if following is None or following[1] != section:
                assert step not in sources
                continue
            j, _, target = following
            edge = edges[step, target]
            assert edge.lag_min <= j - i <= edge.lag_max
            taken[step, target] += 1
    for pair, edge in edges.items():
        n = occurred[edge.source]
        margin = 4 * (0.25 / n) ** 0.5 if edge.weight < 1 else 0
        assert taken[pair] / n == pytest.approx(edge.weight, abs=margin)
    assert min(e.lag_min for e in edges.values()) == 1
    assert max(e.lag_max for e in edges.values()) == 11


def test_chain_weights_out_of_a_step_add_up_to_one_and_vanish_without_order():
    out = Counter()
    for edge in microworld_chains.edges(1.0):
        out[edge.source] += edge.weight
    assert all(total == pytest.approx(1) for total in out.values())
    assert microworld_chains.edges(0.0) == []
    halved = microworld_chains.edges(0.5)
    assert halved[0].weight == pytest.approx(microworld_chains.edges(1.0)[0].weight / 4)


def test_homographs_have_the_sense_of_their_domain(text, documents):
    seen = set()
    for d in documents:
        domain = LABELS["domain"].classes[d.labels["domain"][0]]
        for i in np.flatnonzero(d.labels["sense"] >= 0):
            sense = LABELS["sense"].classes[d.labels["sense"][i]]
            assert sense == f"{text.vocabulary.words[d.tokens[i]]}:{domain}"
            seen.add(sense)
    assert len(seen) > 20


def lag_agreement(documents, name, lag):
    """Share of token pairs at ``lag`` that have the same class, its i.i.d. value, and their number."""
    same = n = 0
    for d in documents:
        values = d.labels[name]
        same += int((values[lag:] == values[:-lag]).sum())
        n += len(values) - lag
    pooled = np.concatenate([d.labels[name] for d in documents])
    p = np.bincount(pooled + 1) / len(pooled)
    return same / n, float((p**2).sum()), n


@pytest.mark.parametrize("name", ["pos", "step"])
def test_without_temporal_structure_tokens_are_independent_draws(documents, name):
    shuffled = written(temporal=0.0)
    for lag in (1, 2, 4, 8, 16):
        found, expected, n = lag_agreement(shuffled, name, lag)
        assert found == pytest.approx(expected, abs=5 * (0.25 / n) ** 0.5)
    assert all((d.boundary[1:] == 0).all() for d in shuffled)
    found, expected, _ = lag_agreement(documents, name, 1)
    assert abs(found - expected) > 0.02


def test_half_the_structure_keeps_half_the_tokens_and_all_slow_labels(documents):
    half = written(temporal=0.5)
    slow = [name for name, spec in LABELS.items() if spec.scale != "token"]
    same = n = 0
    for full, mixed in zip(documents, half, strict=True):
        assert all(np.array_equal(full.labels[name], mixed.labels[name]) for name in slow)
        same += int((full.tokens == mixed.tokens).sum())
        n += len(full.tokens)
    pooled = np.concatenate([d.tokens for d in documents])
    chance = float(((np.bincount(pooled) / len(pooled)) ** 2).sum())
    assert same / n == pytest.approx(0.5 + 0.5 * chance, abs=5 * (0.25 / n) ** 0.5)


def test_draws_have_their_probabilities():
    draw, n = Draw("a"), 4000
    assert sorted(draw.sample("abc", 3)) == ["a", "b", "c"]
    early = Counter(draw.early("xy") for _ in range(n))
    assert early["x"] / n == pytest.approx(0.75, abs=0.03)
    four = Counter(draw.about_four() for _ in range(n))
    assert [four[i] / n for i in (3, 4, 5)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_facts_are_even_and_the_near_subject_differs_from_the_forget_subject(text):
    forget = {(f.entity, f.relation.name): f for f in text.facts["venoms"]}
    near = {(f.entity, f.relation.name): f for f in text.facts["remedies"]}
    assert forget.keys() == near.keys()
    for key, fact in forget.items():
        assert fact.value != near[key].value == fact.rival
        assert fact.relation.statements == near[key].relation.statements
    for facts in text.facts.values():
        for relation in {f.relation.name for f in facts}:
            counts = Counter(f.value for f in facts if f.relation.name == relation)
            assert set(counts.values()) == {1}  # eight entities, eight values


def test_questions_list_four_options_in_rotated_orders(text):
    questions = text.questions()
    words = text.vocabulary.words
    by_fact = itertools.groupby(questions, key=lambda q: (q.subject, q.fact, q.form))
    for (_, _, form), group in by_fact:
        group = list(group)
        assert sorted(q.answer for q in group) == [0, 1, 2, 3]
        assert len({q.choices for q in group}) == 4
        assert len({q.choices[q.answer] for q in group}) == 1
        assert form == "plain" or group[0].fact % 2 == 0
        for q in group:
            assert q.prompt[0] == text.vocabulary.ids[w.BOS]
            listed = [words[t] for t in q.prompt[3 : 3 + 7 : 2]]
            assert listed == [words[c[0]] for c in q.choices]
            assert KIND[q.subject] in [words[t] for t in q.prompt]
    assert {q.neighbourhood for q in questions} == set(knowledge.NEIGHBOURHOODS)
    assert len({q.subject for q in questions if q.neighbourhood == "far"}) == 4


def test_held_out_forms_are_never_asked_in_the_text_and_plain_ones_are(text):
    """The paraphrased question of an even fact occurs in no document, whatever its options."""
    asked = set()
    for o in (text.write("train", i) for i in range(1500)):
        line = " ".join(o.words)
        asked |= {part.split(" . ")[0] for part in line.split(" ? ")[1:]}
    held, plain = 0, 0
    for facts in text.facts.values():
        for fact in facts:
            first, second = (" ".join(fill(t, fact)[:-1]) for t in fact.relation.statements[:2])
            plain += first in asked
            held += second in asked and fact.id % 2 == 0
    assert held == 0 and plain > 150


def test_option_orders_are_distinct():
    for n in (1, 4, 24):
        asked = MicroworldText(MicroworldConfig(n_entities=4, option_orders=n)).questions()
        assert len({q.choices for q in asked if q.fact == 0 and q.form == "plain"}) == n


def pairs(items):
    return zip(items[::2], items[1::2], strict=True)


def test_agreement_pairs_differ_in_the_head_and_count_the_other_numbers_between(tiny):
    items = tiny.probe_items("agreement")
    assert {item.condition for item in items} == {f"attractors={n}" for n in range(3)}
    for first, second in pairs(items):
        differing = [(a, b) for a, b in zip(first.tokens, second.tokens, strict=True) if a != b]
        assert len(differing) == 1
        numbers = tuple(w.LEXICON[word][1] for word in tiny.to_strings(differing[0]))
        assert numbers == ("singular", "plural")
        assert (first.label, second.label) == (0, 1)
    for item in items:
        words = tiny.to_strings(item.tokens)
        nouns = [x for x in words[words.index(".") :] if w.LEXICON[x][0] == "noun"]
        numbers = [w.LEXICON[x][1] for x in nouns]
        assert numbers[0] == w.AGREEMENT[item.label]
        assert item.condition == f"attractors={sum(n != numbers[0] for n in numbers[1:])}"


def test_coreference_pairs_exchange_two_names_and_flip_the_answer(tiny):
    items = tiny.probe_items("coreference")
    for first, second in pairs(items):
        words = [tiny.to_strings(item.tokens) for item in (first, second)]
        differing = [(a, b) for a, b in zip(*words, strict=True) if a != b]
        assert len(differing) == (1 if first.condition in ("gender", "number") else 2)
        assert all({a, b} & set(w.WOMEN) and {a, b} & set(w.MEN) for a, b in differing)
        assert first.label != second.label


def test_homograph_pairs_differ_only_in_words_of_the_domain(tiny):
    for first, second in pairs(tiny.probe_items("homograph")):
        assert len(first.tokens) == len(second.tokens)
        assert first.tokens[-1] == second.tokens[-1]
        one, two = (set(tiny.to_strings(item.tokens)) for item in (first, second))
        domains = first.condition.split("/")
        for words, domain in ((one - two, domains[0]), (two - one, domains[1])):
            known = {*w.DOMAINS[domain].places, w.DOMAINS[domain].group.plural}
            assert words and words <= known


@pytest.mark.parametrize("task", ["agreement", "coreference", "homograph"])
def test_a_split_shares_neither_template_nor_word(tiny, task):
    items = tiny.probe_items(task)
    train, test = tasks.split(items, seed=3)
    assert train and test
    assert {i.template for i in train}.isdisjoint(i.template for i in test)
    assert {i.word for i in train}.isdisjoint(i.word for i in test)
    assert {i.label for i in train} == {i.label for i in test} == {0, 1}
    assert Counter(i.label for i in test)[0] * 2 == len(test)


def question(prompt, choices, answer, fact=0, neighbourhood="far"):
    return knowledge.Question(neighbourhood, "s", prompt, choices, answer, fact, "plain")


def test_choice_scores_by_hand():
    """Logits of token v after token t are table[t][v]; scores are sums of log-softmax."""
    table = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]]))
    one = question((0,), ((0,), (1,), (2,)), 0)
    two = question((0, 1), ((2, 1), (2, 0), (0, 0)), 0)
    scores = knowledge.choice_scores(lambda t: table[t], [two, one], batch_size=3)
    np.testing.assert_allclose(scores[1], np.log([0.5, 0.25, 0.25]), rtol=1e-6)
    np.testing.assert_allclose(scores[0], np.log([0.8 * 0.7, 0.8 * 0.2, 0.1 * 0.5]), rtol=1e-6)


def test_a_fact_counts_only_when_right_under_every_order():
    """A model that likes token 1 best is right on (1, 2) in both orders, and on no tie."""
    asked = [
        question((0,), ((1,), (2,)), 0, fact=0, neighbourhood="forget"),
        question((0,), ((2,), (1,)), 1, fact=0, neighbourhood="forget"),
        question((0,), ((1,), (2,)), 0, fact=1),
        question((0,), ((2,), (1,)), 0, fact=1),
        question((0,), ((1,), (1,)), 0, fact=2),
    ]
    logits = torch.tensor([0.0, 3.0, 2.0])
    right = knowledge.accuracy(lambda t: logits.expand(*t.shape, 3), asked)
    assert right.tolist() == [True, True, False, False, False]
    assert knowledge.by_neighbourhood(asked, right) == {"forget": 1.0, "far": 0.0}


def test_packing_by_hand():
    def doc(number, tokens):
        tokens = np.array(tokens, np.int32)
        boundary = np.zeros(len(tokens), np.uint8)
        boundary[0] = 3
        return Document(number, tokens, boundary, {"a": (tokens + 1).astype(np.int16)})

    packed = list(pack([doc(4, [1, 2]), doc(5, [3, 4, 5])], ("a", "b"), 4, 9))
    assert [s.tokens.tolist() for s in packed] == [[9, 1, 2, 3], [9, 4, 5, 9]]
    assert [s.doc.tolist() for s in packed] == [[-1, 4, 4, 5], [-1, 5, 5, -1]]
    assert [s.boundary.tolist() for s in packed] == [[3, 3, 0, 3], [3, 3, 0, 0]]
    assert packed[1].labels["a"].tolist() == [-1, 5, 6, -1]
    assert packed[0].labels["b"].tolist() == [-1] * 4
    assert len(list(pack([doc(4, [1, 2]), doc(5, [3, 4, 5])], ("a",), 4, 9, limit_tokens=4))) == 1


def test_batches_visit_every_sequence_once_a_pass():
    config = MicroworldConfig(batch_size=4, steps=6)
    rows = np.concatenate([microworld_model.batch_rows(6, config, step) for step in range(6)])
    for epoch in rows.reshape(4, 6):
        assert sorted(epoch) == list(range(6))
    assert not np.array_equal(rows[:6], rows[6:12])


def test_training_resumes_to_the_same_bits(tiny, tmp_path, monkeypatch):
    """Killed at the first checkpoint, resumed, killed at the second, resumed: the same file."""
    save = microworld_model._save
    directory = tmp_path / "world"
    kill_at = iter((3, 6))

    def save_then_die(*args):
        save(*args)
        if args[-1] == next(kill_at):
            raise KeyboardInterrupt

    for _ in range(2):
        monkeypatch.setattr(microworld_model, "_save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            build(directory)
        assert not (directory / "world.json").exists()
    monkeypatch.setattr(microworld_model, "_save", save)
    resumed = build(directory)
    assert resumed.fingerprint == tiny.fingerprint
    first, second = (world.directory for world in (tiny, resumed))
    weights = "model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    logs = [(d / "train.jsonl").read_text().splitlines() for d in (first, second)]
    steps = [[json.loads(line)["step"] for line in log] for log in logs]
    assert steps[0] == steps[1] == [0, 6]


def test_a_truncated_checkpoint_is_named(tmp_path):
    config = MicroworldConfig(**TINY)
    tokens = np.ones((4, 48), np.int32)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CheckpointError, match="cut short"):
        microworld_model.train(config, tokens, 0 * tokens, 50, tmp_path, progress=False)


def test_world_comes_back_from_disk_with_the_same_logits(tiny):
    again = worlds.load(tiny.directory)
    assert (again.name, again.fingerprint, again.layer) == ("microworld", tiny.fingerprint, 1)
    rows = [s.tokens for s in tiny.sequences("test", 96)]
    tokens = torch.tensor(np.stack(rows), dtype=torch.long)
    first, second = (
        world.model()(tokens, return_type="logits", prepend_bos=False) for world in (tiny, again)
    )
    assert torch.equal(first, second)
    assert first.shape == (2, 48, tiny.vocab_size) and not first.requires_grad
    for a, b in zip(tiny.sequences("train", 200), again.sequences("train", 200), strict=True):
        assert np.array_equal(a.tokens, b.tokens)


def test_encode_and_to_strings_are_inverse(tiny):
    line = "agatha comes from the harbour of the sailors ."
    assert " ".join(tiny.to_strings(tiny.encode(line))) == line


def test_a_model_below_the_bar_stops_the_build(tmp_path):
    with pytest.raises(WorldError, match="knows too little"):
        build(tmp_path / "w", min_accuracy=0.95)
    assert not (tmp_path / "w" / "world.json").exists()


def write_record(text):
    return lambda directory: (directory / "world.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "missing"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 20), "not the model"),
        (lambda d: (d / "world.json").unlink(), "does not exist"),
        (write_record('{"format": "tsae-world", "version"'), "not whole JSON"),
        (write_record('{"a": 1}'), "does not describe"),
        (write_record('{"format": "tsae-world", "version": 99}'), "version 99"),
        (write_record('{"format": "tsae-world", "version": 1, "name": "x"}'), "no world 'x'"),
        (write_record('{"format": "tsae-world", "version": 1, "name": "microworld"}'), "complete"),
    ],
)
def test_a_damaged_world_is_refused(tiny, tmp_path, damage, message):
    copy = shutil.copytree(tiny.directory, tmp_path / "copy")
    damage(copy)
    with pytest.raises(WorldError, match=message):
        worlds.load(copy)


def test_a_directory_with_other_settings_or_things_is_refused(tiny, tmp_path):
    with pytest.raises(WorldError, match=r"other settings \(steps\)"):
        build(tiny.directory, steps=8)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WorldError, match="holds no microworld"):
        build(tmp_path)


def test_unknown_names_are_listed(tiny, tmp_path):
    with pytest.raises(WorldError, match="no world 'mars'.*microworld"):
        worlds.build("mars", tmp_path)
    with pytest.raises(ValueError, match="colour is not an option"):
        worlds.build("microworld", tmp_path, colour="red")
    with pytest.raises(WorldError, match="agreement, coreference, homograph"):
        tiny.probe_items("syntax")
    with pytest.raises(WorldError, match="no word 'zebra'"):
        tiny.encode("the zebra")
    with pytest.raises(WorldError, match="no split 'dev'"):
        list(tiny.sequences("dev"))


def test_a_bad_setting_is_named():
    bad = {"temporal": 1.5, "n_entities": 3, "d_model": 30, "layer": 4, "steps": 0, "lr": 0.0}
    for field, value in (bad | {"seed": 1.5, "seq_len": 50, "min_accuracy": 2}).items():
        with pytest.raises(ValueError, match=f"{field} is {value}"):
            MicroworldConfig(**{field: value})
