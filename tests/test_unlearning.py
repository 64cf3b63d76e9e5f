"""The unlearning protocol on a model so small that every accuracy follows by hand.

Tokens: 0 BOS, 1-8 entities (entity i is axis i - 1 of x), 9 colon, 10-13 answers. The model
adds up the residuals so far and reads axis i as evidence for answer 10 + i % 4, so a fact about an
entity is known through that entity's axis alone.
"""

from types import SimpleNamespace

import edit_cases
import pandas as pd
import pytest
import torch
from torch import nn

from lab.measures.reading import Sizes
from lab.measures.unlearning.bench import Bench, forget_label
from lab.measures.unlearning.config import EDITS, GATES, UnlearnConfig
from lab.measures.unlearning.cross import Cross
from lab.measures.unlearning.isolation import known
from lab.measures.unlearning.questions import draw, levels_after, prompt_context, rotated
from lab.measures.unlearning.unlearning import unlearn
from lab.worlds import knowledge
from lab.worlds.knowledge import Question, Statement
from tsae.errors import UserError
from tsae.models import logits_with
from tsae.saes import SequenceContext
from tsae.sequences import LabelSpec

D, V, ANSWERS = 8, 14, 10


class ToyModel(nn.Module):
    """Speaks the part of TransformerBridge that tsae.models uses."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Parameter(torch.zeros(V, D), requires_grad=False)
        self.embed[1 : D + 1] = torch.eye(D)
        self.unembed = nn.Parameter(torch.zeros(D, V), requires_grad=False)
        for i in range(D):
            self.unembed[i, ANSWERS + i % 4] = 1.0
        self.cfg = SimpleNamespace(n_layers=1, model_name="toy")
        self.rows = 0

    def forward(self, tokens_BT, return_type=None, prepend_bos=None):
        return self.run_with_hooks(tokens_BT)

    def run_with_hooks(self, tokens_BT, fwd_hooks=(), return_type=None, prepend_bos=None):
        self.rows += len(tokens_BT)
        x_BTD = self.embed[tokens_BT]
        for name, hook in fwd_hooks:
            assert name == "blocks.0.hook_out"
            x_BTD = hook(x_BTD, None)
        return x_BTD.cumsum(1) @ self.unembed


def question(neighbourhood, fact, tokens, answer, shift=0, form="plain"):
    choices = tuple((ANSWERS + (i + shift) % 4,) for i in range(4))
    index = [c[0] for c in choices].index(ANSWERS + answer)
    subject = {"forget": "poison", "near": "balm", "far": "ships"}[neighbourhood]
    return Question(neighbourhood, subject, (0, *tokens, 9), choices, index, fact, form)


def make_questions():
    facts = [("forget", i, (i + 1,), i) for i in range(4)]
    # The near fact 5 needs axis 1 too: entity 6 says answer 1, and so does entity 2.
    facts += [("near", 4, (5,), 0), ("near", 5, (6, 2), 1), ("far", 6, (7, 7), 2)]
    # The model does not know fact 7: entity 8 says answer 3, not 1.
    facts += [("far", 7, (8,), 1)]
    return [question(*fact, shift) for fact in facts for shift in (0, 1)]


class ToyWorld:
    name, fingerprint, vocab_size = "toy", "f", V

    def __init__(self, questions=None, stated=()):
        self.toy, self.stated = ToyModel(), list(stated)
        self.asked = make_questions() if questions is None else questions

    def model(self, device="cpu"):
        return self.toy

    def questions(self):
        return self.asked

    def statements(self):
        return self.stated


# Train text, per sequence after BOS: forget documents hold entities 1-4, retain ones the rest.
TRAIN = {
    # axis 0 fires on 3 of the 6 forget tokens, axis 2 on 2, axis 1 on 1
    "poison": [[1, 1, 3], [1, 3, 2]],
    # axis 1 fires on 1 of the 6 retain tokens
    "balm": [[5, 6, 2], [7, 8, 9]],
}
TEST = {"poison": [[1, 2, 9]], "balm": [[2, 5, 7]]}


class ToyStore:
    fingerprint, layer, scale, median_norm, seq_len = "f", 0, 1.0, 1.0, 4

    def __init__(self, labelled=True):
        classes = ("poison", "balm")
        self.label_specs = {"domain": LabelSpec("domain", "document", classes)} if labelled else {}

    def batches(self, split, batch_size):
        embed = ToyModel().embed
        rows = [
            (c, r) for c, text in enumerate((TRAIN, TEST)[split == "test"].values()) for r in text
        ]
        tokens = torch.tensor([[0, *r] for _, r in rows])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[:, 0] = False
        boundary = torch.zeros_like(tokens, dtype=torch.uint8)
        boundary[:, :2] = 3
        boundary[:, 1:][:, 1:][tokens[:, 1:-1] == 9] = 1  # a sentence starts after the colon
        doc = torch.arange(len(rows))[:, None].expand_as(tokens).clone()
        doc[:, 0] = -1
        label = torch.tensor([c for c, _ in rows])[:, None].expand_as(tokens).clone()
        label[:, 0] = -1
        batch = SimpleNamespace(
            x_BTD=embed[tokens],
            tokens_BT=tokens,
            doc_BT=doc,
            context=SequenceContext(mask, boundary),
            labels={"domain": label.to(torch.int16)} if self.label_specs else {},
        )
        batch.to = lambda device: batch
        yield batch


def identity():
    return edit_cases.identity(D)


def config(**options):
    defaults = {
        "retain_thresholds": (0.0, 0.2),
        "n_latents": (1, 2),
        "strengths": (100,),
        "gates": ("always",),
        "edits": ("clamp",),
        "matched": False,
        "stop_below": 0.0,
    }
    return UnlearnConfig(**{**defaults, **options})


def run(world=None, store=None, **options):
    """Rows and documents of the identity on the toy world."""
    read = store or ToyStore(), world or ToyWorld()
    return unlearn(identity(), *read, config(**options), progress=False)


def values(rows, metric):
    return {r["group"]: r["value"] for r in rows if r["metric"] == metric}


def test_accuracies_by_hand():
    rows, documents = run()
    # t = 0 ranks axes 0, 2 (axis 1 fires on retained text); t = 0.2 ranks 0, 2, 1.
    group = "always/clamp|t=0|n={}|m=100".format
    assert values(rows, "unlearn_known") == {"forget": 1.0, "near": 1.0, "far": 0.5}
    assert values(rows, "unlearn_forget_accuracy")[group(1)] == 3 / 4  # axis 0 was fact 0
    assert values(rows, "unlearn_forget_accuracy")[group(2)] == 2 / 4  # and axis 2 fact 2
    assert values(rows, "unlearn_near_accuracy")[group(2)] == 1.0
    assert values(rows, "unlearn_far_accuracy")[group(2)] == 1.0
    n = {r["metric"]: r["n"] for r in rows if r["group"] == group(2)}
    counts = [n[f"unlearn_{name}_accuracy"] for name in ("forget", "near", "far")]
    assert counts == [4, 2, 1]  # the fact that the clean model does not know is not asked
    assert values(rows, "unlearn_score")["always/clamp"] == 0.5
    # Documents: one per fact, and their ratio of sums is the accuracy.
    forget = documents[
        (documents["metric"] == "unlearn_forget_accuracy") & (documents["group"] == group(2))
    ]
    assert dict(zip(forget["doc"], forget["num"], strict=True)) == {0: 0, 1: 1, 2: 0, 3: 1}
    assert forget["den"].tolist() == [1.0] * 4


def test_collateral_damage_costs_the_score():
    # n = 3 at t = 0.2 edits axis 1 too: fact 1 is forgotten, but so is the near fact 5.
    rows, _ = run(retain_thresholds=(0.2,), n_latents=(1, 3))
    assert values(rows, "unlearn_forget_accuracy")["always/clamp|t=0.2|n=3|m=100"] == 1 / 4
    assert values(rows, "unlearn_near_accuracy")["always/clamp|t=0.2|n=3|m=100"] == 1 / 2
    assert values(rows, "unlearn_score")["always/clamp"] == 1 / 4  # of n = 1 alone
    assert values(rows, "unlearn_qualifying")["always/clamp"] == 1


@pytest.mark.parametrize("m, accuracy", [(30, 1.0), (40, 0.0)])  # 1 - 0.85 > 0, 1 - 1.13 < 0
def test_a_weak_push_on_the_answer_direction_forgets_nothing(m, accuracy):
    # Axes 0 and 4 both speak for the answer; clamping axis 0 takes its logit from 2 to
    # 1 - m sqrt(8)/100, and the other answers stand at 0.
    facts = [("forget", 0, (1, 5), 0), ("near", 4, (5,), 0), ("far", 6, (7,), 2)]
    world = ToyWorld([question(*fact) for fact in facts])
    rows, _ = run(world, retain_thresholds=(0.0,), n_latents=(1,), strengths=(m,))
    assert values(rows, "unlearn_forget_accuracy")[f"always/clamp|t=0|n=1|m={m}"] == accuracy


def test_text_rows_by_hand():
    rows, documents = run(n_latents=(1,))
    group = "always/clamp|t=0|n=1|m=100"
    # Test text: 6 valid tokens, axis 0 fires at one, in the forget document.
    assert values(rows, "unlearn_touched")[group] == pytest.approx(1 / 6)
    assert values(rows, "unlearn_retain_touched")[group] == 0.0
    assert values(rows, "unlearn_retain_ce_delta")[group] == 0.0
    # CE of token 2 after 1 and of 9 after 1, 2, before and after: logit 10 goes 1 -> -sqrt(8).
    e, b = torch.e, float(torch.tensor(-(8**0.5)).exp())
    total = float(torch.tensor([(13 + b) / (13 + e), (12 + b + e) / (12 + 2 * e)]).log().sum())
    # 2 forget and 2 retain positions are scored
    assert values(rows, "unlearn_ce_delta")[group] == pytest.approx(total / 4, rel=1e-5)
    ce = documents[(documents["metric"] == "unlearn_ce_delta") & (documents["group"] == group)]
    assert ce["doc"].tolist() == [0, 1] and ce["den"].tolist() == [2.0, 2.0]
    assert ce["num"].tolist() == pytest.approx([total, 0.0], rel=1e-5)


def test_gates_and_edits_are_crossed_and_random_stays_off_the_chosen():
    crossed = {"gates": ("always", "token-codes"), "edits": ("clamp", "clamp-random")}
    rows, documents = run(**crossed, retain_thresholds=(0.0,), false_positive_rates=(0.0,))
    forget = values(rows, "unlearn_forget_accuracy")
    at = {"always": "t=0|n={}|m=100", "token-codes": "t=0|n={}|fpr=0|m=100"}
    edits = ("clamp", "clamp-random", "hold-random")  # the last joins behind every gate
    groups = {f"{g}/{e}|{at[g]}".format(n) for g in at for e in edits for n in (1, 2)}
    assert set(forget) == groups
    # The chosen axes never fire on retained text, so the gate opens wherever they do.
    for n in (1, 2):
        pair = [forget[f"{g}/clamp|{at[g]}".format(n)] for g in at]
        assert pair[0] == pair[1]
        assert forget[f"always/clamp-random|{at['always']}".format(n)] >= 3 / 4
        # Random latents behind a gate are set where it is open alone: prompts of facts 0 and 2.
        reached = values(rows, "unlearn_forget_prompts")
        assert reached[f"token-codes/hold-random|{at['token-codes']}".format(n)] == n / 4
        assert (
            values(rows, "unlearn_near_prompts")[f"token-codes/clamp|{at['token-codes']}".format(n)]
            == 0
        )
    assert set(values(rows, "unlearn_score")) == {f"{g}/{e}" for g in at for e in edits}
    assert set(values(rows, "unlearn_false_positive_rate").values()) == {0.0}
    wide = documents.pivot_table(index="doc", columns="group", values="num", aggfunc="sum")
    assert sum("|" in name for name in wide.columns) == 12


def test_a_sweep_ends_once_too_much_is_lost():
    # Axis 1 holds near fact 5: at m = 100 it is gone.
    sweep = {"strengths": (1, 100, 200), "stop_below": 0.9}
    rows, _ = run(retain_thresholds=(0.2,), n_latents=(3,), **sweep)
    swept = [g for g in values(rows, "unlearn_near_accuracy") if g.startswith("always/clamp|")]
    assert swept == [f"always/clamp|t=0.2|n=3|m={m}" for m in (1, 100)]


def test_every_score_and_evidence_and_edit_runs_on_one_bench():
    size = {"retain_thresholds": (0.2,), "n_latents": (2,), "false_positive_rates": (0.2,)}
    touched = values(run(gates=GATES, **size)[0], "unlearn_retain_touched")
    assert {g.split("/")[0] for g in touched} == set(GATES)
    assert all(value <= 1 for value in touched.values())
    rows, _ = run(edits=EDITS, **size, matched=True)
    edits = {g.split("|")[0].split("/")[1] for g in values(rows, "unlearn_latents")}
    # On one level there are neither parents nor leaves.
    assert edits == {e for e in EDITS if not e.startswith(("hierarchical", "leaves"))}


def test_the_group_is_in_the_name():
    rows, _ = run(retain_thresholds=(0.0,), n_latents=(1,), group="all")
    assert "always/clamp|t=0|n=1|m=100|group=all" in values(rows, "unlearn_latents")
    with pytest.raises(ValueError, match="group='fast'.*all"):
        run(group="fast")


def test_without_labels_prompts_are_ranked_on_and_named_as_such():
    rows, _ = run(store=ToyStore(labelled=False))
    # 4 forget facts x 2 orders x (entity, colon); 4 others: (1 + 2 + 2 + 1 entities + 4 colons) x 2
    assert values(rows, "unlearn_rank_tokens") == {"forget:prompts": 16.0, "retain:prompts": 20.0}


def test_what_states_the_facts_that_are_not_asked_for_is_ranked_on():
    facts = [("forget", "poison", (0, i + 1, 10 + i), i) for i in range(4)]
    facts += [("near", "balm", (0, 5, 6, 13), 4), ("near", "balm", (0, 6, 5, 13), 5)]
    world = ToyWorld(stated=[Statement(*fact) for fact in facts])
    settings = config(n_facts=1, rank_tokens=4)
    bench = Bench(identity(), ToyStore(labelled=False), world, settings, "cpu")
    asked = {q.fact for q in bench.exam.questions}
    left = [fact for *_, fact in facts if fact not in asked]
    assert bench.source == "statements" and [s.fact for s in bench.stated] == left
    # x is one axis an entity, axis i for fact i, and nothing for an answer; three facts are left.
    (forget,) = bench.forget
    assert forget.x_BTD[:, 1].argmax(-1).tolist() == left[:3]
    assert forget.keep_BT.tolist() == [[0, 1, 1]] * 3
    assert bench.token_rows(True) == [(0, i + 1, 10 + i) for i in left[:3]]
    retain = bench.retain
    assert retain[0].keep_BT.tolist() == [[0, 1, 1, 1]]
    # Train text follows: the first batch, with all of its valid tokens.
    assert sum(int(text.keep_BT.sum()) for text in retain[1:]) == 12
    assert int(next(bench.texts(False, "test", 99)).keep_BT.sum()) == 6


def test_settings_are_judged_on_the_named_forms_and_attacks_ask_the_others_too():
    asked = [q._replace(form=form) for q in make_questions() for form in ("plain", "turned")]
    settings = {"forms": ["plain"], "attacks": ["paraphrase", "perturbation", "relearning"]}
    rows, documents = run(ToyWorld(asked), **settings, retain_thresholds=(0.0,), n_latents=(2,))
    n = {r["group"]: r["n"] for r in rows if r["metric"] == "unlearn_known"}
    assert n == {"forget": 4, "near": 2, "far": 2}  # plain forms alone
    known = {r["group"]: r["n"] for r in rows if r["metric"] == "unlearn_attack_known"}
    assert known["forget|attack=paraphrase"] == 4 and known["forget|attack=perturbation"] == 8
    forget = values(rows, "unlearn_attack_forget_accuracy")
    # Facts 0 and 2 are gone in every form. No block lies above the edit, so nothing is relearned.
    for attack in ("paraphrase", "relearning"):
        assert forget[f"always/clamp|attack={attack}"] == 2 / 4
    assert "unlearn_attack_forget_accuracy" in set(documents["metric"])


def test_another_subject_can_be_forgotten():
    asked = rotated(make_questions(), {"forget": ["balm"], "near": ["poison"]})
    where = {q.subject: q.neighbourhood for q in asked}
    assert where == {"poison": "near", "balm": "forget", "ships": "far"}
    assert rotated(make_questions(), {}) == make_questions()
    with pytest.raises(ValueError, match="'rum'; allowed are balm, poison, ships"):
        rotated(make_questions(), {"forget": ["rum"]})


def test_known_facts_are_counted_by_subject():
    found = known(
        {"a": None, "b": None}, SimpleNamespace(sizes=Sizes(batch=1), device="cpu"), ToyWorld()
    )
    assert found["a"].rows == found["b"].rows
    counts = values(found["a"].rows, "known_facts")
    # Of near fact 5 axis 1 says the answer, of far fact 7 no axis does.
    assert counts == {"all": 7, "poison": 4, "balm": 2, "ships": 1}
    assert values(found["a"].rows, "known_plain")["ships"] == 0.5


def test_skipping_prompts_that_no_edit_reaches_changes_no_answer():
    settings = config(gates=("always", "ema-codes"), false_positive_rates=(0.2,))
    world = ToyWorld()
    bench = Bench(identity(), ToyStore(), world, settings, "cpu")
    questions = bench.exam.questions
    keys = [(q.subject, q.fact, q.form) for q in questions]
    for case in Cross(bench).cases():
        edit = case.edit(bench, 100)
        if case.strategy.endswith("hold-random") and case.gate is None:
            continue  # reaches every prompt

        def logits(tokens_BT, edit=edit):
            edit.within(bench.context(tokens_BT))
            return logits_with(world.toy, tokens_BT, 0, edit)

        before = world.toy.rows
        rows, documents = bench.exam.ask(edit)
        assert world.toy.rows - before < len(questions)
        slow = knowledge.accuracy(logits, questions)
        right = dict(zip(keys, slow, strict=True))
        found = pd.concat(documents).groupby("doc")["num"].sum()
        assert {key[1]: float(ok) for key, ok in right.items()} == found.to_dict()
        for name, mean in knowledge.by_neighbourhood(questions, slow).items():
            (value,) = (r["value"] for r in rows if r["metric"] == f"unlearn_{name}_accuracy")
            assert value == pytest.approx(mean)


# ---- questions, labels, boundaries ------------------------------------------------------------


def test_draw_takes_whole_facts_and_the_first_orders():
    questions = make_questions() + [question("far", 8, (8,), 3, form="paraphrase")] * 3
    drawn = draw(questions, n_facts=2, n_orders=1, seed=0)
    facts = pd.DataFrame([(q.neighbourhood, q.fact, q.form) for q in drawn])
    assert not facts.duplicated().any()
    assert facts.groupby(0)[1].nunique().to_dict() == {"far": 2, "forget": 2, "near": 2}
    assert draw(questions, 100, None, 0) == questions
    assert drawn == draw(questions, 2, 1, 0)


def test_label_of_the_forget_subject():
    specs = {
        "section": LabelSpec("section", "section", ("poison", "a")),
        "domain": LabelSpec("domain", "document", ("balm", "poison")),
        "pos": LabelSpec("pos", "token", ("poison",)),
    }
    assert forget_label(specs, {"poison"}) == {"domain": [1]}
    del specs["domain"]
    assert forget_label(specs, {"poison"}) == {"section": [0]}
    del specs["section"]
    assert forget_label(specs, {"poison"}) is None


def test_boundaries_of_prompts_follow_the_text():
    levels = levels_after(ToyStore(), V, 1000)
    assert levels.tolist() == [0] * V  # in the train text nothing follows a colon
    levels[9] = 1
    made = prompt_context(torch.tensor([[0, 9, 5, 9, 0], [0, 9, 9, 9, 5]]), levels)
    assert made.mask_BT.tolist() == [[True] * 4 + [False], [True] * 5]
    assert made.boundary_BT.tolist() == [[0, 0, 1, 0, 1], [0, 0, 1, 1, 1]]


class ColonStore(ToyStore):
    def batches(self, split, batch_size):
        (batch,) = super().batches(split, batch_size)
        batch.tokens_BT = torch.tensor([[0, 9, 5, 9], [0, 9, 9, 5], [0, 1, 9, 6], [0, 5, 5, 5]])
        batch.context.boundary_BT[:] = torch.tensor(
            [[3, 3, 1, 3], [3, 3, 2, 1], [3, 3, 0, 1], [3, 3, 3, 0]]
        )
        yield batch


def test_the_rule_is_the_majority_inside_documents():
    levels = levels_after(ColonStore(), V, 1000)
    # After 9 come levels 1, 2, 1, 1; after 5: 3, 3, 0, where 3 does not count.
    assert levels[[0, 5, 9]].tolist() == [0, 0, 1]


class OtherStore(ToyStore):
    fingerprint = "g"


@pytest.mark.parametrize(
    "kept, store, words",
    [
        (lambda q: False, ToyStore, "no forget questions"),
        (lambda q: q.neighbourhood != "near", ToyStore, "no near"),
        (lambda q: q.fact != 6, ToyStore, "none of the 1 far questions"),
        (lambda q: True, OtherStore, "another world"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(kept, store, words):
    with pytest.raises(UserError, match=words) as caught:
        run(ToyWorld([q for q in make_questions() if kept(q)]), store())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, field",
    [
        ({"edits": ("erase",)}, "edits"),
        ({"gates": ("ema",)}, "gates"),
        ({"retain_thresholds": (2.0,)}, "retain_thresholds"),
        ({"n_latents": ()}, "n_latents"),
        ({"strengths": (0,)}, "strengths"),
        ({"n_orders": 0}, "n_orders"),
        ({"n_facts": 0}, "n_facts"),
    ],
)
def test_config_names_the_bad_field(options, field):
    with pytest.raises(ValueError, match=field):
        UnlearnConfig(**options)


def test_config_takes_json():
    read = UnlearnConfig(strengths=[25, 50], text={"theme": ["quiz"]})
    assert read.strengths == (25, 50)
    assert read.text == {"theme": ["quiz"]}
