"""Tables and macros: names, rounding, verdicts, and what happens when a number is missing."""

import numpy as np
import pandas as pd
import pytest
import synthetic_tables as made

from lab.paper import claims, numbers, register, report
from lab.paper.readme import markdown
from lab.paper.tables import Column, Table, by_ablation, by_group, cell, columns, escape, seeds_note
from lab.results import tidy
from lab.results.metrics import verdict
from lab.results.systems import display
from tsae.errors import UserError

FOUND = made.found()
RESULTS, DIFFERENCES = FOUND["results"], FOUND["differences"]


def frame(*rows):
    return pd.DataFrame([made.row(*row) for row in rows])


THREE = frame(*(("microworld", "topk", seed, "fve", "all", v) for seed, v in enumerate((1, 2, 6))))


def difference(diff, lo, hi, metric="f1", group="document", baseline="topk"):
    row = {
        "world": "microworld",
        "variant": "conv",
        "baseline": baseline,
        "metric": metric,
        "group": group,
        "diff": diff,
        "lo": lo,
        "hi": hi,
        "verdict": verdict(metric, lo, hi),
    }
    return pd.DataFrame([row])  # fmt: skip


def line(text, start):
    """The cells of the table's line that starts so."""
    found = next(part for part in text.splitlines() if part.startswith(start))
    return [part.strip() for part in found.removesuffix(r"\\").split(" & ")]


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("microworld", "conv", "fve"), "MicroworldConvFve"),
        (("smollm2", "topk", "l0"), "SmollmTwoTopkLZero"),
        (("ema(topk)",), "EmaTopk"),
        (("ap", "document:domain"), "ApDocumentDomain"),
        (("probe_sparse", "k=16"), "ProbeSparseKOneSix"),
        (("density", "-3.5"), "DensityMinusThreePointFive"),
        (("gpt-2",), "GptTwo"),
        (("factTorch",), "FactTorch"),
    ],
)
def test_macro_names(parts, name):
    assert numbers.camel(*parts) == name


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("fve", 0.98765, "0.988"),
        ("l0", 12, "12.0"),
        ("half_life", 2.25, "2.2"),
        ("births_per_100", 412.34, "412"),
        ("n", 1234567.0, r"1\,234\,567"),
        ("fve", -0.5, "$-$0.500"),
        ("fve", np.nan, "--"),
        ("half_life", np.inf, r"$\infty$"),
    ],
)
def test_numbers_in_print(metric, value, text):
    assert tidy.number(metric, value) == text


def test_mean_and_standard_error_over_seeds():
    # values 1, 2, 6: mean 3, s² = (4 + 1 + 9) / 2 = 7, s.e. = √(7/3) = 1.5275
    macros = numbers.values(THREE)
    assert macros["numMicroworldTopkFve"] == "3.000"
    assert macros["numMicroworldTopkFveSe"] == "1.528"
    assert macros["factMicroworldSeeds"] == "3" and macros["factMicroworldLayer"] == "2"
    assert cell(THREE, Column("fve")) == r"3.000\,{\scriptsize$\pm$\,1.528}"
    assert cell(THREE[:1], Column("fve")) == "1.000"  # one seed: no standard error
    assert cell(THREE, Column("l0")) == "--"


def test_the_act_and_the_reading_are_named_only_where_there_are_several():
    both = frame(
        ("microworld", "conv", 0, "fve", "all", 0.9), ("microworld", "l1", 0, "fve", "all", 0.8)
    )
    other = both[:1].assign(act="jumprelu", value=0.7)
    read = both[:1].assign(reading="ema", value=0.6)
    macros = numbers.values(pd.concat([both, other, read]))
    assert macros["numMicroworldConvFve"] == "0.900"
    assert macros["numMicroworldConvJumpreluFve"] == "0.700"
    assert macros["numMicroworldEmaConvFve"] == "0.600"
    assert macros["numMicroworldLOneFve"] == "0.800"  # l1's only act, relu, is not named
    assert display("conv+jumprelu") == "Conv+JumpReLU"


def test_ablations_have_names_of_their_own_and_clashing_names_have_none():
    table = frame(
        ("microworld", "conv", 0, "fve", "all", 0.9, "window=8"),
        ("microworld", "conv", 0, "x", "a=b", 1.0),
        ("microworld", "conv", 0, "x", "a:b", 2.0),
    )
    macros = numbers.values(table)
    assert macros["numMicroworldConvAblationWindowEightFve"] == "0.900"
    assert "numMicroworldConvXAB" not in macros


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((0.08, 0.05, 0.11), "better than TopK"),
        ((0.08, -0.01, 0.17), "not shown to differ from TopK"),
        ((0.0, -0.01, 0.015), "equivalent to TopK"),
        ((-0.08, -0.11, -0.05), "worse than TopK"),
        ((-0.02, -0.03, -0.01, "fvu", "all"), "better than TopK"),  # less is unexplained
        ((0.02, 0.01, 0.03, "fvu", "all"), "worse than TopK"),
        ((0.002, 0.001, 0.003, "fvu", "all"), "equivalent to TopK"),  # real, and too small
        ((-0.1, -0.2, -0.05, "smoothness", "all"), "better than TopK"),
    ],
)
def test_a_verdict_is_words_and_its_gap_stands_apart(row, said):
    macros = numbers.verdicts(difference(*row))
    (verdict,) = (text for name, text in macros.items() if name.startswith("verdict"))
    (gap,) = (text for name, text in macros.items() if name.startswith("gap"))
    assert verdict == said
    diff, lo, hi = row[:3]
    assert gap == f"${diff:+.3f}$ [${lo:+.3f}$, ${hi:+.3f}$]"


def test_a_verdict_names_its_baseline_and_unmatched_l0():
    table = difference(0.08, 0.05, 0.11)
    macros = numbers.verdicts(table, pd.Series({("microworld", "conv"): False}))
    assert macros["verdictMicroworldConvFOneDocument"] == ("better than TopK (at another L0)")
    macros = numbers.verdicts(difference(0.1, 0.05, 0.2, baseline="ema(topk)"))
    assert macros["verdictMicroworldConvVsEmaTopkFOneDocument"] == "better than EMA(TopK)"
    written = table.assign(verdict="undecided")  # what the comparison decided for the family
    assert numbers.verdicts(written)["verdictMicroworldConvFOneDocument"].startswith("not")


def test_matched_l0_is_within_two_percent_of_topk():
    table = frame(
        ("microworld", "topk", 0, "l0", "all", 100),
        ("microworld", "conv", 0, "l0", "all", 101.9),
        ("microworld", "l1", 0, "l0", "all", 97.9),
    )
    flags = tidy.matched_l0(tidy.prepare(table))
    assert [flags["microworld", name] for name in ("topk", "conv", "l1")] == [True, True, False]
    with pytest.raises(UserError, match="no 'topk' run on microworld"):
        tidy.matched_l0(tidy.prepare(table[1:]))


def test_what_is_kept_is_the_lowest_forget_accuracy_with_near_and_far_at_the_bar():
    settings = {
        "clamp|n=10|m=25": (0.6, 1.0, 1.0),
        "clamp|n=10|m=50": (0.3, 0.99, 1.0),
        "clamp|n=20|m=50": (0.1, 0.5, 1.0),
        "random|n=10|m=25": (0.9, 0.9, 1.0),
    }
    rows = [
        ("microworld", "topk", 0, f"unlearn_{name}_accuracy", group, value)
        for group, triple in settings.items()
        for name, value in zip(("forget", "near", "far"), triple, strict=True)
    ]
    table = frame(*rows)
    assert numbers.kept(table) == {
        "keptMicroworldTopkClamp": "0.30",
        "keptMicroworldTopkRandom": "none",
    }
    with pytest.raises(UserError, match="no 'unlearn_far_accuracy' rows"):
        tidy.unlearning(table[table["metric"] != "unlearn_far_accuracy"])


def test_facts_are_written_as_numbers_and_as_text():
    given = {"a": 1_000_000, "b": np.int64(2304), "c": 0.002, "d": "x_y"}
    assert list(numbers.facts(given).values()) == [r"1\,000\,000", "2304", "0.002", r"x\_y"]


def test_escape_and_used():
    assert escape(r"a_b & 5% {x} $\n") == r"a\_b \& 5\% \{x\} \$\textbackslash{}n"
    assert escape("Δθ ↑") == r"$\Delta$$\theta$ $\uparrow$"
    source = r"\numAFve{} 5\% \verdictB % \numHidden" + "\n" + r"\factC\number\numbers \gapD"
    assert numbers.used(source) == {"numAFve", "verdictB", "factC", "gapD"}


def test_a_verdict_is_taken_from_the_study_where_it_gives_one():
    source = r"\said{MicroworldConvFOneDocument} \gapof{MicroworldLstmFvu}"
    assert numbers.used(source) == {"verdictMicroworldConvFOneDocument", "gapMicroworldLstmFvu"}
    study = numbers.numbers_tex(RESULTS, DIFFERENCES, source, part="study")
    assert r"\newcommand{\studyVerdictMicroworldConvFOneDocument}{better than TopK}" in study
    assert "Lstm" not in study  # so that the main part's is printed


def test_a_number_the_paper_uses_and_the_results_lack_is_an_error_but_in_a_partial_run():
    paper = r"\numMicroworldTopkFve \numNowhere \factTokens \factCommit \studyNumElsewhere"
    given = {"tokens": 1_000_000, "commit": "a_b"}
    table = pd.concat([THREE, frame(("microworld", "topk", 0, "l0", "all", 10))])
    said = difference(0.1, 0, 1)
    with pytest.raises(UserError, match=r"uses 1 number\(s\).*\\numNowhere\)"):
        numbers.numbers_tex(table, said, paper, given)
    text = numbers.numbers_tex(table, said, paper, given, smoke=True)
    assert r"\newcommand{\numNowhere}{\textit{[not measured in this run]}}" in text
    assert r"\newcommand{\factTokens}{1\,000\,000}" in text
    assert r"\smoketrue" in text and r"\partialtrue" in text and r"\smokefalse" not in text
    text = numbers.numbers_tex(table, said, paper, given, partial=True)
    assert r"\smokefalse" in text and r"\partialtrue" in text
    names = [line.split("}")[0] for line in text.splitlines() if line.startswith(r"\newcommand")]
    assert names == sorted(names) and len(set(names)) == len(names)
    study = numbers.numbers_tex(table, said, r"\studyNumMicroworldTopkFve", part="study")
    assert r"\newcommand{\studyNumMicroworldTopkFve}{3.000}" in study and "newif" not in study


def test_numbers_are_the_same_whatever_the_order_of_the_rows():
    mixed = RESULTS.sample(frac=1, random_state=0)
    source = r"\numMicroworldConvFve \verdictMicroworldConvFvu"
    one = numbers.numbers_tex(RESULTS, DIFFERENCES, source, made.FACTS)
    assert one == numbers.numbers_tex(mixed, DIFFERENCES[::-1], source, made.FACTS)


def test_a_table_marks_verdicts_unmatched_l0_and_nulls_and_leaves_out_what_is_not_measured():
    text = register.draw("table_main", **FOUND)
    assert line(text, "ReLU+L1")[1].endswith(r"$^\dagger$")
    assert r"$^\dagger$" not in line(text, "Conv")[1]
    heads = line(text, "System")
    assert heads[:3] == ["System", "L0", r"FVE $\uparrow$"] and r"bits/token $\downarrow$" in heads
    assert r"$\Delta$CE" not in text  # not measured
    # fvu rises by 0.004 ± 0.03: neither shown nor equivalent, so its FVE is plain
    assert "textbf" not in line(text, "Conv")[2]
    rule = text.index(r"\cmidrule(lr)")
    assert text.index("Conv &") < rule < text.index("EMA(TopK)") and text.count("cmidrule") == 2
    assert text.count(r"\textit{microworld}") == text.count(r"\textit{SmolLM2-135M}") == 1
    assert r"\caption{\smokeline Fidelity" in text and "Shuffled" not in text
    with pytest.raises(UserError, match="no 'l0' rows"):
        register.draw("table_main", results=RESULTS[RESULTS["metric"] != "l0"])


def test_a_cell_is_bold_where_its_difference_is_better_and_slanted_where_it_is_worse():
    shown = columns(("f1", "document"), ("f1", "token"))
    table = Table("t", "", shown, verdicts="topk")(FOUND)
    name, document, token = line(table, "Conv")
    assert document.startswith(r"\textbf{0.") and token.startswith(r"\textit{0.")
    assert "text" not in "".join(line(table, "TopK"))
    with pytest.raises(UserError, match="nothing of table t"):
        Table("t", "", [Column("absent")])(FOUND)


def test_a_table_of_several_and_of_one_seed_says_where_there_is_an_error():
    """Three seeds on one world, one on the other."""
    found = {"results": RESULTS[(RESULTS["world"] == "microworld") | (RESULTS["seed"] == 0)]}
    text = Table("t", "{seeds}", columns("fve"))(found)
    assert "Mean $\\pm$ standard error over 3 seeds; one seed where no error is shown." in text
    several, one = text.split(r"\textit{SmolLM2-135M}")
    assert several.count(r"\scriptsize$\pm$") == 8 and r"\pm$\," not in one
    assert seeds_note(tidy.prepare(RESULTS)) == "Mean $\\pm$ standard error over 3 seeds."
    two = RESULTS[(RESULTS["world"] == "microworld") | (RESULTS["seed"] < 2)]
    note = seeds_note(tidy.compared(two))
    assert note.endswith("over 3 seeds (microworld), 2 seeds (SmolLM2-135M).")
    assert seeds_note(tidy.prepare(RESULTS[RESULTS["seed"] == 0])) == "One seed."


def test_ablations_stand_below_the_run_they_change_and_groups_by_number():
    names = [entry[1] for entry in by_ablation("conv")(tidy.prepare(RESULTS))]
    assert names == ["Conv", "  gate='none'", "  lag_rank=None", "  window=2", "  window=8"]
    table = Table("t", "", columns("fve"), by_ablation("conv"), tidy.prepare)
    text = table(FOUND)
    assert r"\quad lag\_rank=None & 0.940\\" in text and "k=6" not in text
    base = frame(("microworld", "conv", 0, "fve", "all", 0.123, "base"))
    again = table({"results": pd.concat([RESULTS, base])})
    assert line(again, "Conv")[1] == "0.123" and "base" not in again
    groups = frame(*(("microworld", "topk", 0, m, g, v) for g, v in (("w=12", 1), ("w=2", 2))
                     for m in ("tracker_ap", "tracker_recall")))  # fmt: skip
    listed = [(key, len(rows)) for key, _, rows in by_group("tracker_ap")(tidy.prepare(groups))]
    assert listed == [("w=2", 2), ("w=12", 2)]


def test_settings_are_written_once_in_words():
    rows = [
        ("microworld", "conv", "topk", "d_in", "128"),
        ("microworld", "conv", "topk", "window", "8"),
        ("microworld", "conv", "topk", "lag_rank", "null"),
        ("microworld", "conv", "topk", "consistency_weights", "[0.0, 0.01]"),
        ("microworld", "conv", "topk", "tied", "false"),
    ]
    configs = pd.DataFrame(rows, columns=["world", "variant", "act", "field", "value"])
    text = register.draw("table_settings", configs=configs)
    said = r"Conv & window 8; lag rank none; consistency weights 0, 0.01; tied no\\"
    assert said in text.splitlines()


def test_reference_table_keeps_values_as_written_and_never_shows_ours():
    given = pd.DataFrame(
        [
            ("T_x", "k=20", "FVE", "0.750", "someone2025"),
            ("T_x", "k=20", "L0", "20", "someone2025"),
        ],
        columns=["system", "setting", "metric", "value", "source"],
    )
    text = report.reference_table(given)
    assert r"T\_x & k=20 & FVE~0.750; L0~20 & \citet{someone2025}\\" in text


CLAIM = {"claim": "A & B", "who": "ours", "theirs": "5%", "made": "x", "notebook": "07"}


def claim(holds=("better",), **ours):
    ours = {"world": "microworld", "system": "conv", "metric": "f1"} | ours
    return CLAIM | {"ours": ours, "holds": list(holds)}


def test_a_claim_is_told_with_our_number_its_verdict_and_whether_that_bears_it_out():
    asked = [
        claim(group="document", baseline="topk"),
        claim(("worse",), group="document", baseline="topk"),
        claim(group="section", baseline="topk"),
        claim(group="document", baseline="conv"),
        claim((), metric="fve"),
    ]
    text = claims.table(asked, RESULTS, DIFFERENCES)
    told = [line.removesuffix(r"\\").split(" & ")[4:] for line in text.splitlines()
            if line.startswith(r"A \& B")]  # fmt: skip
    number, fve = "$+0.080$ [$+0.050$, $+0.110$]", told[4][0]
    assert told == [
        [number, "better", "yes"], [number, "better", "no"],
        ["$+0.010$ [$-0.020$, $+0.040$]", "undecided", ""], ["", "not measured", ""], [fve, "", ""],
    ]  # fmt: skip
    assert fve.startswith("0.9")


def test_a_claim_that_is_not_whole_is_refused(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("- {claim: a, who: ours, ours: {world: w}, holds: [grand]}")
    with pytest.raises(UserError, match=r"Claim 1 .* lacks theirs, made, notebook, ours.system"):
        claims.read(path)


def test_a_readme_cell_is_a_mean_over_seeds_with_its_verdict():
    rows = [
        ("microworld", variant, seed, metric, "all", value)
        for variant, l0, fve in (("topk", 12, 0.95), ("conv", 12.1, 0.9), ("l1", 13, 0.97))
        for seed in (0, 1)
        for metric, value in (("l0", l0), ("fve", fve + 0.01 * seed))
    ]
    # The difference is in what is left unexplained, of which less is better.
    said = pd.concat([difference(0.05, 0.04, 0.06, "fvu", "all"),
                      difference(0.0, -0.03, 0.01, "fvu", "all").assign(variant="l1")])  # fmt: skip
    lines = markdown({"results": frame(*rows), "differences": said}).split("\n")
    assert lines == ["| system | FVE ↑ |", "| --- | --: |", "| ReLU+L1 | 0.975±0.005 † |",
                     "| TopK | 0.955±0.005 |", "| Conv | *0.905±0.005* |"]  # fmt: skip


def test_a_label_that_is_called_like_a_time_scale_is_not_counted_with_it():
    rows = pd.DataFrame({"group": ["section", "section:section", "document:domain"]})
    assert list(tidy.of_group(rows, "section")["group"]) == ["section"]
    assert list(tidy.of_group(rows, "domain")["group"]) == ["document:domain"]
