"""Questions and probing items that come from published files or are written in the project."""

import csv
import json
from collections import Counter
from itertools import pairwise

import pytest
import torch

from lab.worlds import cloze, exams, linguistics
from lab.worlds.knowledge import Question, choice_scores, fed
from tsae.errors import WorldError

BOS = 256


def encode(text):
    """One token a byte."""
    return list(text.encode("utf-8"))


def decode(tokens):
    return bytes(tokens).decode("utf-8")


def words(text):
    """One token a word, numbered by what it says."""
    return [sum(word.encode()) * 1000 + len(word) for word in text.split()]


# ---- cloze --------------------------------------------------------------------------------


def test_cloze_facts_are_many_and_well_formed():
    facts = {name: subject.facts for name, subject in cloze.SUBJECTS.items()}
    assert sum(map(len, facts.values())) >= 200 and len(facts) >= 5
    for name, pairs in facts.items():
        entities = [entity for entity, _ in pairs]
        assert len(set(entities)) == len(entities), name
        assert len({answer for _, answer in pairs}) >= cloze.N_CHOICES, name
        assert all(entity and answer for entity, answer in pairs), name
    # What is near is said of countries that the forget facts name.
    countries = {entity for entity, _ in facts["capitals"]}
    for name, subject in cloze.SUBJECTS.items():
        same = {entity for entity, _ in facts[name]} <= countries
        assert same == (subject.neighbourhood in ("forget", "near")), name


def test_cloze_questions_hold_the_right_answer_once():
    questions = cloze.questions(encode, BOS)
    truth = {name: dict(subject.facts) for name, subject in cloze.SUBJECTS.items()}
    assert len(questions) == 3 * sum(map(len, truth.values()))
    assert questions == cloze.questions(encode, BOS)
    assert questions != cloze.questions(encode, BOS, seed=1)
    for question in questions:
        choices = [decode(choice) for choice in question.choices]
        answers = truth[question.subject]
        assert len(set(choices)) == cloze.N_CHOICES
        assert all(choice[0] == " " and choice[1:] in answers.values() for choice in choices)
    paris = next(q for q in questions if q.subject == "capitals")
    assert paris.prompt[0] == BOS
    assert decode(paris.prompt[1:]) == "The capital of France is the city of"
    assert decode(paris.choices[paris.answer]) == " Paris"
    assert {q.form for q in questions if q.fact == paris.fact} == set(cloze.FORMS)
    # The place of the answer says nothing.
    places = Counter(q.answer for q in questions)
    assert max(places.values()) < 0.3 * len(questions)


def test_cloze_facts_are_stated_in_sentences_that_end_in_a_full_stop():
    stated = cloze.statements(encode, BOS)
    questions = cloze.questions(encode, BOS)
    assert len(stated) == len(questions)
    first = [decode(s.tokens[1:]) for s in stated[:3]]
    assert first == [
        "The capital of France is the city of Paris.",
        "Paris is the capital of France.",
        "The capital city of France is called Paris.",
    ]
    # A fact has one number in both, and no question but the plain one begins a statement.
    names = {(q.neighbourhood, q.subject, q.fact) for q in questions}
    assert {(s.neighbourhood, s.subject, s.fact) for s in stated} == names
    texts = [decode(s.tokens[1:]) for s in stated]
    assert all(text.endswith(".") and text[0].isupper() for text in texts)
    other = [decode(q.prompt[1:]) for q in questions if q.form != "plain"]
    assert not [text for text in texts if text.startswith(tuple(other))]


def test_a_row_scores_every_choice_that_it_holds():
    choices = ((5,), (6, 7), (6, 8), (9, 4, 3))
    asked = Question("far", "s", (1, 2), choices, 0, 0, "plain")
    assert dict(fed(asked)) == {(1, 2, 9, 4): [3, 0], (1, 2, 6): [1, 2]}
    short = asked._replace(choices=((5,), (6,), (7,), (8,)))
    assert fed(short) == [((1, 2), [0, 1, 2, 3])]


def test_choices_that_share_a_row_score_as_alone():
    """p(next = v) is given by the last token alone, so that each score is a sum of known logs."""
    torch.manual_seed(0)
    logits_VV = torch.randn(12, 12)
    logp_VV = logits_VV.double().log_softmax(-1)
    choices = ((5,), (6, 7), (6, 8), (9, 4, 3))
    asked = Question("far", "s", (1, 2), choices, 0, 0, "plain")
    found = choice_scores(lambda tokens_BT: logits_VV[tokens_BT], [asked])[0]
    by_hand = [sum(logp_VV[a, b] for a, b in pairwise((2, *choice))) for choice in choices]
    assert found.tolist() == pytest.approx([float(score) for score in by_hand])


# ---- exams --------------------------------------------------------------------------------


def mmlu(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


MMLU_ROWS = [['What, "exactly"?', "one", "two", "three", "four", "B"], ["Q2", *"wxyz", "D"]]
WMDP_ROWS = [{"question": "Which?", "choices": ["p", "q", "r", "s"], "answer": 0}]


def test_published_exams_become_questions_under_every_order(tmp_path):
    far = mmlu(tmp_path / "high_school_geography_test.csv", MMLU_ROWS)
    (tmp_path / "wmdp-bio.json").write_text(json.dumps(WMDP_ROWS))
    sources = {"forget": [str(tmp_path / "wmdp-bio.json")], "far": [far]}
    questions = exams.questions(sources, encode, BOS, longest=400)
    asked = [("forget", "wmdp-bio", 0)] + [("far", "high_school_geography", i) for i in (1, 2)]
    assert [(q.neighbourhood, q.subject, q.fact) for q in questions[::24]] == asked
    assert len(questions) == 3 * 24
    assert decode(questions[0].prompt[1:]) == (
        "The following is a multiple choice question (with its answer) about bio.\n\n"
        "Which?\nA. p\nB. q\nC. r\nD. s\nAnswer:"
    )
    for first in range(0, 72, 24):
        asked = questions[first : first + 24]
        assert len({q.prompt for q in asked}) == 24
        assert Counter(q.answer for q in asked) == {0: 6, 1: 6, 2: 6, 3: 6}
        assert {q.answer for q in asked[:4]} == {0, 1, 2, 3}
        right = {decode(q.prompt[1:]).split("\n")[3 + q.answer][3:] for q in asked}
        assert right == {("p", "two", "z")[first // 24]}
        assert all(q.choices == tuple((*encode(f" {x}"),) for x in "ABCD") for q in asked)


def test_a_prompt_names_the_subject_and_not_the_exam():
    for subject in ("mmlu_human_aging", "human_aging", "wmdp-human-aging"):
        assert " about human aging.\n\nQ?" in exams.prompt("Q?", "wxyz", subject)


def test_questions_that_are_too_long_are_left_out_whole(tmp_path):
    far = mmlu(tmp_path / "x_test.csv", [*MMLU_ROWS, ["Q" * 300, *"abcd", "A"]])
    questions = exams.questions({"far": [far]}, encode, BOS, longest=200)
    assert {q.fact for q in questions} == {0, 1} and len(questions) == 48
    with pytest.raises(WorldError, match="No question fits into the 50 tokens"):
        exams.questions({"far": [far]}, encode, BOS, longest=50)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.csv", "Q,a,b,c,d\n", "a.csv, question 1, lacks a question, four choices or an answer"),
        ("a.csv", "Q,a,b,c,d,A\nQ,a,b,c,d,E\n", "question 2, lacks a"),
        ("a.csv", "", "holds no question; copy it again"),
        ("a.json", "[{", r"a.json is not whole \(.*\); copy it again"),
        ("a.json", '{"question": "Q"}', "question 1, lacks a"),
        ("a.jsonl", '{"question": "Q", "choices": ["a"], "answer": 0}', "question 1, lacks a"),
        ("a.jsonl", '{"question": "Q", "choices": ["a","b","c","d"], "answer": 4}', "lacks a"),
    ],
)
def test_foreign_exams_give_one_sentence(tmp_path, name, content, line):
    (tmp_path / name).write_text(content)
    with pytest.raises(WorldError, match=line):
        exams.read(str(tmp_path / name))


def test_exams_that_cannot_be_asked():
    for sources, line in [
        ({"forgot": []}, "questions are 'forgot'; allowed are forget, near, far"),
        ({"far": "mmlu/anatomy"}, "questions of far are 'mmlu/anatomy'; allowed is a list"),
    ]:
        with pytest.raises(ValueError, match=line):
            exams.check(sources)
    with pytest.raises(WorldError, match="There is no exam 'none.csv'; give wmdp-NAME"):
        exams.check({"far": ["none.csv"]})
    exams.check({"forget": ["wmdp-bio"], "far": ["mmlu/anatomy"]})


# ---- linguistics --------------------------------------------------------------------------


def blimp(path, rows):
    keys = ("sentence_good", "sentence_bad", "UID")
    term = {"linguistics_term": "subject_verb_agreement"}
    rows = [dict(zip(keys, row, strict=True)) | term for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_blimp_rows_become_balanced_items(tmp_path):
    blimp(
        tmp_path / "agreement.jsonl",
        [
            ("The boy walks home.", "The boy walk home.", "regular"),
            ("The boys walk home.", "The boys walks home.", "regular"),
            ("Some dogs haven't come.", "Some dogs hasn't come.", "irregular"),
            ("This dog hasn't come.", "This dog haven't come.", "irregular"),
            ("Sue is here.", "Sue are here.", "irregular"),  # no plural is left to go with it
            ("He runs.", "They runs.", "regular"),  # no common beginning
        ],
    )
    tasks = {"blimp": str(tmp_path)}
    assert linguistics.names(tasks) == ["blimp/subject_verb_agreement"]
    items = linguistics.items("blimp/subject_verb_agreement", tasks, words, BOS)
    assert [item.label for item in items] == [1, 0, 1, 0]
    assert [item.condition for item in items] == ["regular"] * 2 + ["irregular"] * 2
    assert items[0].tokens == (BOS, *words("The boy"))
    assert items[0].word == items[1].word != items[2].word == items[3].word
    assert items[0].template == items[1].template != items[2].template


WINOBIAS = """\
1 [The developer] argued with the designer because [she] did not like the design.
2 The developer argued with [the designer] because [her] idea cannot be understood.
3 [The guard] argued with the clerk because [she] did not like the design.
"""


def test_winobias_lines_ask_who_is_meant(tmp_path):
    (tmp_path / "anti_stereotyped_type1.txt.dev").write_text(WINOBIAS)
    items = linguistics.items("winobias", {"winobias": str(tmp_path)}, words, BOS)
    assert [item.label for item in items] == [0, 1, 0]
    assert {item.condition for item in items} == {"anti_stereotyped_type1"}
    text = "The developer argued with the designer because she did not like the design."
    assert items[0].tokens == (BOS, *words(f'{text} Here "she" means the'))
    assert items[0].word == items[1].word != items[2].word
    assert items[0].template == items[2].template != items[1].template


def test_wic_rows_ask_whether_the_meaning_is_the_same(tmp_path):
    (tmp_path / "dev.data.txt").write_text(
        "board\tN\t2-2\tRoom and board .\tHe nailed boards .\n"
        "carry\tV\t1-1\tYou carry it .\tSound carries .\n"
    )
    (tmp_path / "dev.gold.txt").write_text("F\nT\n")
    items = linguistics.items("wic", {"wic": str(tmp_path)}, words, BOS)
    assert [i[2:] for i in items] == [(0, 0, 0, "N"), (1, 1, 1, "V")]
    text = 'Room and board . He nailed boards . The meaning of "board" in the two is'
    assert items[0].tokens == (BOS, *words(text))


def test_foreign_task_files_give_one_sentence(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"sentence_good": "x"}\n')
    (tmp_path / "a.txt").write_text("1 No brackets here.\n")
    (tmp_path / "a.data.txt").write_text("too\tfew\n")
    for task, kind, file, line in [
        ("blimp/x", "blimp", "a.jsonl", "line 1, is no row of BLiMP"),
        ("winobias", "winobias", "a.txt", r"line 1, has no \[occupation\] and \[pronoun\]"),
        ("wic", "wic", "a.data.txt", "a.gold.txt does not exist; put WiC's gold file"),
    ]:
        with pytest.raises(WorldError, match=line):
            linguistics.items(task, {kind: str(tmp_path / file)}, encode, BOS)
    (tmp_path / "a.gold.txt").write_text("T\n")
    with pytest.raises(WorldError, match="line 1, is no row of WiC"):
        linguistics.items("wic", {"wic": str(tmp_path / "a.data.txt")}, words, BOS)
    with pytest.raises(ValueError, match="tasks names 'glue'; allowed are blimp, winobias, wic"):
        linguistics.check({"glue": str(tmp_path)})
    with pytest.raises(WorldError, match="Task wic: .*none does not exist"):
        linguistics.check({"wic": str(tmp_path / "none")})
