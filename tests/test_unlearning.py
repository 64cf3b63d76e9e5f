"""The unlearning protocol on a model so small that every accuracy follows by hand.

Tokens: 0 BOS, 1-8 entities (entity i is axis i - 1 of x), 9 colon, 10-13 answers. The model
adds up the residuals so far and reads axis i as evidence for answer 10 + i % 4, so a fact about an
entity is known through that entity's axis alone.
"""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from lab.measures.unlearning import known
from lab.measures.unlearning.asked import draw
from lab.measures.unlearning.bench import Bench
from lab.measures.unlearning.forget_text import forget_label, levels_after
from lab.measures.unlearning.unlearning import UnlearnConfig, score_rows, unlearn
from lab.worlds import knowledge
from lab.worlds.knowledge import Question, Statement
from tsae import saes
from tsae.errors import UserError
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
    sae = saes.build("l1", d_in=D, d_sae=D, k=1).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D))
        sae.W_dec.copy_(torch.eye(D))
    return sae


def config(**options):
    defaults = {
        "retain_thresholds": (0.0, 0.2),
        "n_latents": (1, 2),
        "multipliers": (100,),
        "strategies": ("clamp",),
    }
    return UnlearnConfig(**{**defaults, **options})


def values(rows, metric):
    return {r["group"]: r["value"] for r in rows if r["metric"] == metric}


def test_accuracies_by_hand():
    rows, documents = unlearn(identity(), ToyStore(), ToyWorld(), config(), progress=False)
    # t = 0 ranks axes 0, 2 (axis 1 fires on retained text); t = 0.2 ranks 0, 2, 1.
    group = "clamp|t=0|n={}|m=100".format
    assert values(rows, "unlearn_known") == {"forget": 1.0, "near": 1.0, "far": 0.5}
    assert values(rows, "unlearn_forget_accuracy")[group(1)] == 3 / 4  # axis 0 was fact 0
    assert values(rows, "unlearn_forget_accuracy")[group(2)] == 2 / 4  # and axis 2 fact 2
    assert values(rows, "unlearn_near_accuracy")[group(2)] == 1.0
    assert values(rows, "unlearn_far_accuracy")[group(2)] == 1.0
    n = {r["metric"]: r["n"] for r in rows if r["group"] == group(2)}
    counts = [n[f"unlearn_{name}_accuracy"] for name in ("forget", "near", "far")]
    assert counts == [4, 2, 1]  # the fact that the clean model does not know is not asked
    assert values(rows, "unlearn_score") == {"clamp": 0.5}
    # Documents: one per fact, and their ratio of sums is the accuracy.
    forget = documents[
        (documents["metric"] == "unlearn_forget_accuracy") & (documents["group"] == group(2))
    ]
    assert dict(zip(forget["doc"], forget["num"], strict=True)) == {0: 0, 1: 1, 2: 0, 3: 1}
    assert forget["den"].tolist() == [1.0] * 4


def test_collateral_damage_costs_the_score():
    # n = 3 at t = 0.2 edits axis 1 too: fact 1 is forgotten, but so is the near fact 5.
    rows, _ = unlearn(
        identity(),
        ToyStore(),
        ToyWorld(),
        config(retain_thresholds=(0.2,), n_latents=(1, 3)),
        progress=False,
    )
    assert values(rows, "unlearn_forget_accuracy")["clamp|t=0.2|n=3|m=100"] == 1 / 4
    assert values(rows, "unlearn_near_accuracy")["clamp|t=0.2|n=3|m=100"] == 1 / 2
    assert values(rows, "unlearn_score") == {"clamp": 1 / 4}  # of n = 1 alone
    assert values(rows, "unlearn_qualifying") == {"clamp": 1}


def test_a_weak_push_on_the_answer_direction_forgets_nothing():
    # Axes 0 and 4 both speak for the answer; clamping axis 0 takes its logit from 2 to
    # 1 - m sqrt(8)/100, and the other answers stand at 0.
    asked = [
        question("forget", 0, (1, 5), 0),
        question("near", 4, (5,), 0),
        question("far", 6, (7,), 2),
    ]
    for m, accuracy in ((30, 1.0), (40, 0.0)):  # 1 - 0.85 > 0, 1 - 1.13 < 0
        rows, _ = unlearn(
            identity(),
            ToyStore(),
            ToyWorld(asked),
            config(retain_thresholds=(0.0,), n_latents=(1,), multipliers=(m,)),
            progress=False,
        )
        (found,) = values(rows, "unlearn_forget_accuracy").values()
        assert found == accuracy


def test_text_rows_by_hand():
    rows, documents = unlearn(
        identity(), ToyStore(), ToyWorld(), config(n_latents=(1,)), progress=False
    )
    group = "clamp|t=0|n=1|m=100"
    # Test text: 6 valid tokens, axis 0 fires at one, in the forget document.
    assert values(rows, "unlearn_touched")[group] == pytest.approx(1 / 6)
    assert values(rows, "unlearn_retain_touched")[group] == 0.0
    assert values(rows, "unlearn_retain_ce_delta")[group] == 0.0
    # CE of token 2 after 1 and of 9 after 1, 2, before and after: logit 10 goes 1 -> -sqrt(8).
    a, b, z = torch.e, float(torch.tensor(-(8**0.5)).exp()), 1.0
    rise = torch.tensor(
        [(13 * z + b) / (13 * z + a), (12 * z + b + torch.e) / (12 * z + 2 * torch.e)]
    )
    total = float(rise.log().sum())
    # 2 forget and 2 retain positions are scored
    assert values(rows, "unlearn_ce_delta")[group] == pytest.approx(total / 4, rel=1e-5)
    ce = documents[(documents["metric"] == "unlearn_ce_delta") & (documents["group"] == group)]
    assert dict(zip(ce["doc"], ce["num"], strict=True)) == pytest.approx(
        {0: total, 1: 0.0}, rel=1e-5
    )
    assert ce["den"].tolist() == [2.0, 2.0]


def test_strategies_share_the_grid_and_random_stays_off_the_chosen():
    settings = {"strategies": ("clamp", "adaptive", "random"), "retain_thresholds": (0.0,)}
    rows, documents = unlearn(
        identity(), ToyStore(), ToyWorld(), config(**settings), progress=False
    )
    forget = values(rows, "unlearn_forget_accuracy")
    assert set(forget) == {
        f"{s}|t=0|n={n}|m=100" for s in ("clamp", "adaptive", "random") for n in (1, 2)
    }
    rates = values(rows, "unlearn_false_positive_rate")
    assert rates == {"adaptive|t=0|n=1": 0.0, "adaptive|t=0|n=2": 0.0}
    # The chosen axes never fire on retained text, so the adaptive clamp acts wherever they do.
    for n in (1, 2):
        assert forget[f"adaptive|t=0|n={n}|m=100"] == forget[f"clamp|t=0|n={n}|m=100"]
        assert forget[f"random|t=0|n={n}|m=100"] >= 3 / 4  # axes 0 and 2 are not among the random
    assert set(values(rows, "unlearn_score")) == {"clamp", "adaptive", "random"}
    wide = documents.pivot_table(index="doc", columns="group", values="num", aggfunc="sum")
    assert sum("|" in name for name in wide.columns) == 6


def test_relative_and_group_are_in_the_name():
    rows, _ = unlearn(
        identity(),
        ToyStore(),
        ToyWorld(),
        config(retain_thresholds=(0.0,), n_latents=(1,), relative=True, group="all"),
        progress=False,
    )
    assert list(values(rows, "unlearn_latents")) == ["clamp|t=0|n=1|m=100|relative|group=all"]


def test_without_labels_prompts_are_ranked_on_and_named_as_such():
    rows, _ = unlearn(identity(), ToyStore(labelled=False), ToyWorld(), config(), progress=False)
    # 4 forget facts x 2 orders x (entity, colon); 4 others: (1 + 2 + 2 + 1 entities + 4 colons) x 2
    assert values(rows, "unlearn_rank_tokens") == {"forget:prompts": 16.0, "retain:prompts": 20.0}


def test_what_states_the_facts_that_are_not_asked_for_is_ranked_on():
    facts = [("forget", "poison", (0, i + 1, 10 + i), i) for i in range(4)]
    facts += [("near", "balm", (0, 5, 6, 13), 4), ("near", "balm", (0, 6, 5, 13), 5)]
    world = ToyWorld(stated=[Statement(*fact) for fact in facts])
    settings = config(n_facts=1, rank_tokens=4)
    bench = Bench(identity(), ToyStore(labelled=False), world, settings, "cpu")
    asked = {q.fact for q in bench.questions}
    left = [fact for *_, fact in facts if fact not in asked]
    assert bench.source == "statements" and [s.fact for s in bench.stated] == left
    # x is one axis an entity, axis i for fact i, and nothing for an answer; three facts are left.
    (forget,) = bench.texts("forget")
    assert forget.x_BTD[:, 1].argmax(-1).tolist() == left[:3]
    assert forget.keep_BT.tolist() == [[0, 1, 1]] * 3
    retain = list(bench.texts("retain"))
    assert retain[0].keep_BT.tolist() == [[0, 1, 1, 1]]
    # Train text follows: the first batch, with all of its valid tokens.
    assert sum(int(text.keep_BT.sum()) for text in retain[1:]) == 12
    assert len(list(bench.texts("all"))) == 1 + len(retain)
    assert int(next(bench.held_out_texts()).keep_BT.sum()) == 6


def test_settings_are_judged_on_the_named_forms_and_attacks_ask_the_others_too():
    asked = [q._replace(form=form) for q in make_questions() for form in ("plain", "turned")]
    settings = config(forms=["plain"], attack_facts=1)
    bench = Bench(identity(), ToyStore(), ToyWorld(asked), settings, "cpu")
    assert {q.form for q in bench.questions} == {"plain"} and len(bench.questions) == 16
    attacked = bench.under_attack()
    assert len({(q.neighbourhood, q.fact) for q in attacked}) == 3
    assert len(attacked) == 3 * 2 * 2  # facts, orders, forms


def test_known_facts_are_counted_by_subject():
    found = known.measure({"a": None, "b": None}, None, ToyWorld(), batch_size=4, device="cpu")
    assert found["a"].rows == found["b"].rows
    counts = values(found["a"].rows, "known_facts")
    # Of near fact 5 axis 1 says the answer, of far fact 7 no axis does.
    assert counts == {"all": 7, "poison": 4, "balm": 2, "ships": 1}
    assert values(found["a"].rows, "known_plain")["ships"] == 0.5


def test_skipping_prompts_that_no_edit_reaches_changes_no_answer():
    store, world = ToyStore(), ToyWorld()
    settings = config(strategies=("clamp", "adaptive"))
    bench = Bench(identity(), store, world, settings, "cpu")
    from lab.measures.unlearning.unlearning import plan
    from tsae.models import logits_with

    plans, _ = plan(bench, settings)
    bench.ask_clean(torch.arange(D))
    for p in plans:
        edit = p.edit(bench, 100)

        def logits(tokens_BT, edit=edit):
            edit.within(bench.context(tokens_BT))
            return logits_with(world.toy, tokens_BT, 0, edit)

        before = world.toy.rows
        fast = bench.answers(edit)
        assert world.toy.rows - before < len(bench.questions)
        slow = knowledge.accuracy(logits, bench.questions)
        keys = [(q.subject, q.fact, q.form) for q in bench.questions]
        assert fast == {key: bool(ok) for key, ok in zip(keys, slow, strict=True)}
        rows, _ = bench.run(edit)
        means = knowledge.by_neighbourhood(bench.questions, slow)
        for name, mean in means.items():
            (value,) = (r["value"] for r in rows if r["metric"] == f"unlearn_{name}_accuracy")
            assert value == pytest.approx(mean)


# ---- the score --------------------------------------------------------------------------------


def accuracy_rows(*settings):
    return [
        {"metric": f"unlearn_{name}_accuracy", "group": f"clamp|m={m}", "value": value, "n": 100}
        for m, values in enumerate(settings)
        for name, value in zip(("forget", "near", "far"), values, strict=True)
    ]


@pytest.mark.parametrize(
    "settings, score, qualifying",
    [
        ([(0.2, 0.98, 0.98), (0.1, 0.5, 1.0)], 0.0, 0),  # none keeps 0.99
        ([(0.2, 0.98, 1.0), (0.1, 0.97, 1.0)], 0.8, 1),  # mean 0.99 counts, 0.985 does not
        ([(0.9, 1.0, 1.0), (0.6, 1.0, 1.0), (0.0, 0.9, 0.9)], 0.4, 2),
    ],
)
def test_score_by_hand(settings, score, qualifying):
    rows = score_rows(accuracy_rows(*settings))
    assert values(rows, "unlearn_score") == {"clamp": pytest.approx(score)}
    assert values(rows, "unlearn_qualifying") == {"clamp": qualifying}


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
    assert forget_label(specs, {"poison"}) == ("domain", [1])
    del specs["domain"]
    assert forget_label(specs, {"poison"}) == ("section", [0])
    del specs["section"]
    assert forget_label(specs, {"poison"}) is None


def test_boundaries_of_prompts_follow_the_text():
    levels = levels_after(ToyStore(), V, 1000)
    assert levels.tolist() == [0] * V  # in the train text nothing follows a colon
    levels[9] = 1
    bench = SimpleNamespace(levels_V=levels)
    made = Bench.context(bench, torch.tensor([[0, 9, 5, 9, 0], [0, 9, 9, 9, 5]]))
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


@pytest.mark.parametrize(
    "world, store, words",
    [
        (ToyWorld([]), ToyStore(), "no forget questions"),
        (
            ToyWorld([q for q in make_questions() if q.neighbourhood != "near"]),
            ToyStore(),
            "no near",
        ),
        (
            ToyWorld([q for q in make_questions() if q.fact != 6]),
            ToyStore(),
            "none of the 1 far questions",
        ),
        (ToyWorld(), type("Other", (ToyStore,), {"fingerprint": "g"})(), "another world"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(world, store, words):
    with pytest.raises(UserError, match=words) as caught:
        unlearn(identity(), store, world, config(), progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, field",
    [
        ({"strategies": ("erase",)}, "strategies"),
        ({"retain_thresholds": (2.0,)}, "retain_thresholds"),
        ({"n_latents": ()}, "n_latents"),
        ({"multipliers": (0,)}, "multipliers"),
        ({"n_orders": 0}, "n_orders"),
        ({"n_facts": 0}, "n_facts"),
    ],
)
def test_config_names_the_bad_field(options, field):
    with pytest.raises(ValueError, match=field):
        UnlearnConfig(**options)


def test_config_takes_json():
    read = UnlearnConfig(multipliers=[25, 50], detector={"score": "cusum"})
    assert read.multipliers == (25, 50)
    assert read.detector.score == "cusum"
