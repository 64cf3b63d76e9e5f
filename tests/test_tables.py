"""Tables and macros: names, rounding, verdicts, and what happens when a number is missing."""

import numpy as np
import pandas as pd
import pytest
import synthetic_tables as made

from lab.paper import tables
from lab.paper.tables import latex, numbers
from lab.results import tidy
from tsae.errors import UserError

RESULTS, DIFFERENCES = made.results(), made.differences()


def frame(*rows):
    return pd.DataFrame([made.row(*row) for row in rows])


THREE = frame(*(("microworld", "topk", seed, "fve", "all", v) for seed, v in enumerate((1, 2, 6))))


def difference(diff, lo, hi, metric="recovery_f1", group="document", baseline="topk"):
    columns = ("world", "variant", "baseline", "metric", "group", "diff", "lo", "hi")
    row = ("microworld", "conv", baseline, metric, group, diff, lo, hi)
    return pd.DataFrame([dict(zip(columns, row, strict=True))])


def said(table, matched=None):
    (text,) = numbers.verdicts(table, pd.Series(matched or {}, dtype=object)).values()
    return text


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("microworld", "conv", "fve"), "MicroworldConvFve"),
        (("smollm2", "topk", "l0"), "SmollmTwoTopkLZero"),
        (("ema(topk)",), "EmaTopk"),
        (("recovery_f1", "document"), "RecoveryFOneDocument"),
        (("autocorrelation", "lag=16"), "AutocorrelationLagOneSix"),
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
    assert latex.cell(THREE, "fve") == r"3.000\,{\scriptsize$\pm$\,1.528}"
    assert latex.cell(THREE[:1], "fve") == "1.000"  # one seed: no standard error
    assert latex.cell(THREE, "l0") == "--"


def test_the_act_is_named_only_where_a_variant_has_several():
    both = frame(
        ("microworld", "conv", 0, "fve", "all", 0.9), ("microworld", "l1", 0, "fve", "all", 0.8)
    )
    other = both[:1].assign(act="jumprelu", value=0.7)
    macros = numbers.values(pd.concat([both, other]))
    assert macros["numMicroworldConvFve"] == "0.900"
    assert macros["numMicroworldConvJumpreluFve"] == "0.700"
    assert macros["numMicroworldLOneFve"] == "0.800"  # l1's only act, relu, is not named
    assert tidy.display("conv+jumprelu") == "Conv+JumpReLU"


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
    ("row", "start"),
    [
        ((0.08, 0.05, 0.11), "recovers document-level latents better than TopK (difference"),
        ((0.08, -0.01, 0.17), "is not distinguishable from TopK on document-level latents ("),
        ((0.0, 0.0, 0.1), "is not distinguishable"),
        ((-0.08, -0.11, -0.05), "recovers document-level latents worse than TopK ("),
        # variance unexplained: lower is better
        ((-0.02, -0.03, -0.01, "fvu", "all"), "reconstructs better than TopK ("),
        ((0.02, 0.01, 0.03, "fvu", "all"), "reconstructs worse than TopK ("),
        ((-0.1, -0.2, -0.05, "smoothness", "all"), "has smoother codes than TopK ("),
        ((0.1, 0.05, 0.2, "mcc", "all"), "is above TopK ("),
    ],
)
def test_a_verdict_needs_an_interval_that_excludes_0(row, start):
    assert said(difference(*row)).startswith(start)


def test_a_verdict_gives_its_numbers_its_baseline_and_unmatched_l0():
    table = difference(0.08, 0.05, 0.11)
    numbers_in_it = r"(difference $+0.080$, 95\% interval [$0.050$, $0.110$])"
    assert said(table).endswith(numbers_in_it)
    unequal = said(table, {("microworld", "conv"): False})
    assert unequal.endswith("[$0.050$, $0.110$]; L0 not matched)")
    (name,) = numbers.verdicts(difference(0.1, 0.0, 0.2, baseline="ema(topk)"), pd.Series())
    assert name == "verdictMicroworldConvVsEmaTopkRecoveryFOneDocument"


def test_best_leaves_out_nulls_and_unmatched_l0():
    values = {"topk": (10, 0.7), "conv": (10.1, 0.8), "l1": (11, 0.95), "ema(topk)": (10, 0.99)}
    rows = [
        ("microworld", variant, 0, metric, "all", value)
        for variant, pair in values.items()
        for metric, value in zip(("l0", "fve"), pair, strict=True)
    ]
    assert numbers.best(frame(*rows)) == {"bestMicroworldFve": "Conv (0.800)"}


def test_matched_l0_is_within_two_percent_of_topk():
    table = frame(
        ("microworld", "topk", 0, "l0", "all", 100),
        ("microworld", "conv", 0, "l0", "all", 101.9),
        ("microworld", "l1", 0, "l0", "all", 97.9),
    )
    flags = tidy.matched_l0(tidy.prepare(table))
    assert dict(flags) == {
        ("microworld", "topk"): True,
        ("microworld", "conv"): True,
        ("microworld", "l1"): False,
    }
    with pytest.raises(UserError, match="no 'topk' run on microworld"):
        tidy.matched_l0(tidy.prepare(table[1:]))


def test_unlearning_verdict_is_the_lowest_forget_accuracy_that_keeps_both_retain_sets():
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
    macros = numbers.forgotten(frame(*rows))
    kept = "leaves forget accuracy at 0.30 with 0.99 of the near and 1.00 of the far answers kept"
    assert macros["verdictMicroworldTopkUnlearnClamp"] == kept + " (n=10, m=50)"
    assert macros["verdictMicroworldTopkUnlearnRandom"].startswith("never keeps 0.99 of both")
    assert numbers.forgotten(THREE) == {}


def test_facts_are_spaced_whatever_type_a_table_gives_them():
    given = {"a": 1_000_000, "b": np.int64(20_000), "c": 2304.0, "d": 0.002, "e": "x_y"}
    assert list(numbers.facts(given).values()) == [
        r"1\,000\,000",
        r"20\,000",
        "2304",
        "0.002",
        r"x\_y",
    ]


def test_escape_and_used():
    assert latex.escape(r"a_b & 5% {x} $\n") == r"a\_b \& 5\% \{x\} \$\textbackslash{}n"
    source = r"\numAFve{} 5\% \verdictB % \numHidden" + "\n" + r"\factC\number\numbers \bestD"
    assert tables.used(source) == {"numAFve", "verdictB", "factC", "bestD"}


def test_a_number_the_paper_uses_and_the_results_lack_is_an_error_but_at_smoke_size():
    paper = r"\numMicroworldTopkFve \numNowhere \factTokens \factCommit \fullNumElsewhere"
    given = {"tokens": 1_000_000, "commit": "a_b"}
    table = pd.concat([THREE, frame(("microworld", "topk", 0, "l0", "all", 10))])
    with pytest.raises(UserError, match=r"uses 1 number\(s\).*\\numNowhere\)"):
        tables.numbers_tex(table, difference(0.1, 0, 1), paper, given)
    text = tables.numbers_tex(table, difference(0.1, 0, 1), paper, given, smoke=True)
    assert r"\newcommand{\numNowhere}{\textit{[not measured in this run]}}" in text
    assert r"\newcommand{\factTokens}{1\,000\,000}" in text
    assert r"\newcommand{\factCommit}{a\_b}" in text
    assert r"\smoketrue" in text and r"\partialtrue" in text and r"\smokefalse" not in text
    text = tables.numbers_tex(table, difference(0.1, 0, 1), paper, given, partial=True)
    assert r"\smokefalse" in text and r"\partialtrue" in text
    names = [line.split("}")[0] for line in text.splitlines() if line.startswith(r"\newcommand")]
    assert names == sorted(names) and len(set(names)) == len(names)


def test_numbers_are_the_same_whatever_the_order_of_the_rows():
    shuffled = RESULTS.sample(frac=1, random_state=0)
    one = tables.numbers_tex(RESULTS, DIFFERENCES, "", made.FACTS)
    assert one == tables.numbers_tex(shuffled, DIFFERENCES[::-1], "", made.FACTS)


def test_main_table_flags_unmatched_l0_and_puts_nulls_below_a_rule():
    text = tables.main_table(RESULTS)
    (l1, *_) = [line for line in text.splitlines() if line.startswith("ReLU+L1")]
    assert r"$^\dagger$" in l1
    assert r"$^\dagger$" not in next(ln for ln in text.splitlines() if ln.startswith("Conv"))
    rule = text.index(r"\cmidrule(lr)")
    assert text.index("Conv &") < rule < text.index("EMA(TopK)")
    assert text.count(r"\textit{microworld}") == text.count(r"\textit{SmolLM2-135M}") == 1
    assert tidy.SMOKE not in text
    with pytest.raises(UserError, match="'fve'"):
        tables.main_table(RESULTS[RESULTS["metric"] != "fve"])


def test_recovery_table_is_bold_only_where_the_interval_excludes_0():
    text = tables.recovery_table(RESULTS, DIFFERENCES)
    conv = next(line for line in text.splitlines() if line.startswith("Conv"))
    assert r"\textbf{+0.080 [0.050, 0.110]}" in conv
    assert r"& +0.010 [\textminus 0.020, 0.040]" in conv
    assert r"\textbf{\textminus 0.040 [\textminus 0.070, \textminus 0.010]}" in conv
    topk = next(line for line in text.splitlines() if line.startswith("TopK"))
    assert topk.count("--") == 3


def test_ablation_table_escapes_and_orders():
    text = tables.ablation_table(RESULTS)
    names = [line.split("}")[0] for line in text.splitlines() if r"\texttt{" in line]
    assert len(names) == 5 and r"lag\_rank=None" in text
    assert "k=6" not in text  # the L0 sweep is the Pareto figure's
    # A base run at the ablations' own budget takes the place of the main run.
    base = frame(("microworld", "conv", 0, "fve", "all", 0.123, "base"))
    again = tables.ablation_table(pd.concat([RESULTS, base]))
    assert "base" not in again and "0.123" in again and "0.123" not in text
    with pytest.raises(UserError, match="no ablation rows"):
        tables.ablation_table(RESULTS[RESULTS["ablation"] == ""])


@pytest.mark.parametrize(
    "table",
    [
        lambda: tables.main_table(RESULTS, smoke=True),
        lambda: tables.recovery_table(RESULTS, DIFFERENCES, smoke=True),
        lambda: tables.ablation_table(RESULTS, smoke=True),
    ],
)
def test_smoke_tables_say_so_in_the_caption(table):
    assert r"\caption{\textbf{smoke size: not results.} " in table()


def test_reference_table_keeps_values_as_written_and_never_shows_ours():
    given = pd.DataFrame(
        [
            ("T_x", "k=20", "FVE", "0.750", "someone2025"),
            ("T_x", "k=20", "L0", "20", "someone2025"),
        ],
        columns=["system", "setting", "metric", "value", "source"],
    )
    text = tables.reference_table(given)
    assert r"T\_x & k=20 & FVE~0.750; L0~20 & \citet{someone2025}\\" in text
    with pytest.raises(UserError, match="lack the column.*source"):
        tables.reference_table(given.drop(columns="source"))
