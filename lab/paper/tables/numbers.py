r"""Every number and every verdict in the text, as LaTeX macros made from the results.

**Names.** A macro is a kind and the CamelCase of its key, digits spelled out, since TeX names hold
letters only: ``\num`` + world + system [+ ``Ablation`` + ablation] + metric [+ group], so the FVE
of ``conv`` on ``microworld`` is ``\numMicroworldConvFve``, ``recovery_f1`` at document level
``\numMicroworldConvRecoveryFOneDocument``, the EMA null's L0 ``\numMicroworldEmaTopkLZero``.
``Se`` at the end is the standard error. Group ``all`` is left out.

``\verdict`` + world + system [+ ``Vs`` + baseline, when it is not ``topk``] + metric [+ group]
is a phrase with a difference and its interval; ``\verdict`` + world + system + ``Unlearn`` +
strategy tells the best setting; ``\best`` + world + metric [+ group] names the system with the
highest mean; ``\fact`` + key is a fact of the run handed in by the pipeline.

A profile that fills one part of the paper puts that part's name before each: the ``full``
profile's FVE is ``\fullNumMicroworldConvFve``. Only macros that the paper uses are written.
"""

import re
from collections.abc import Mapping
from numbers import Real

import pandas as pd

from lab.paper.tables.latex import escape
from lab.results import tidy
from tsae.errors import UserError

DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
KINDS = ("num", "verdict", "best", "fact")
LOWER_IS_BETTER = ("fvu", "mse", "ce_sae", "smoothness")
BEST = (("fve", "all"), *(("recovery_f1", scale) for scale in tidy.SCALES))
RETAINED = 0.99  # share of retained answers a setting has to keep (SAEBench, unlearning)
# metric: (better, undecided, worse); {s} is the scale or group, {b} the baseline.
PHRASES = {
    "fvu": (
        "reconstructs better than {b}",
        "is not distinguishable from {b} in reconstruction",
        "reconstructs worse than {b}",
    ),
    "recovery_f1": (
        "recovers {s}-level latents better than {b}",
        "is not distinguishable from {b} on {s}-level latents",
        "recovers {s}-level latents worse than {b}",
    ),
    "recovery_f1_excess": (
        "recovers {s}-level latents better than {b} beyond what frequency explains",
        "is not distinguishable from {b} on {s}-level latents once frequency is taken out",
        "recovers {s}-level latents worse than {b} beyond what frequency explains",
    ),
    "smoothness": (
        "has smoother codes than {b}",
        "is not distinguishable from {b} in smoothness",
        "has less smooth codes than {b}",
    ),
}
OTHERWISE = ("is above {b}", "is not distinguishable from {b}", "is below {b}")


def camel(*parts: str) -> str:
    """Letters only: ``("smollm2", "lag=4")`` is ``SmollmTwoLagFour``; ``-4`` is ``MinusFour``."""
    words = re.sub(r"(?<![A-Za-z0-9])-(?=\d)", " Minus ", " ".join(map(str, parts)))
    words = re.sub(r"(?<=\d)\.(?=\d)", " Point ", words)
    words = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", words)
    return "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z]+", words))


def values(results: pd.DataFrame) -> dict[str, str]:
    r"""``\num…`` and ``\num…Se`` for every metric of every run, averaged over seeds.

    Two results whose keys differ in punctuation alone share a name, so neither gets a macro.
    """
    frame = tidy.prepare(results)
    macros, clashes = {}, set()
    keys = ("world", "system", "ablation", "metric", "group")
    for row in tidy.summary(frame, keys).itertuples():
        changed = f"Ablation {row.ablation}" if row.ablation else ""
        group = "" if row.group == "all" else row.group
        name = "num" + camel(row.world, row.system, changed, row.metric, group)
        for suffix, value in (("", row.mean), ("Se", row.se)):
            if name + suffix in macros:
                clashes.add(name + suffix)
            macros[name + suffix] = tidy.number(row.metric, value, row.mean)
    macros = {name: text for name, text in macros.items() if name not in clashes}
    for world, rows in frame.groupby("world"):
        for fact in ("layer", "seed"):
            macros["fact" + camel(world, fact)] = ", ".join(map(str, sorted(rows[fact].unique())))
        macros["fact" + camel(world, "seeds")] = str(rows["seed"].nunique())
    return macros


def verdicts(differences: pd.DataFrame, matched: pd.Series) -> dict[str, str]:
    r"""``\verdict…`` for every paired difference: decided only by an interval that excludes 0.

    ``matched``: whether a (world, system)'s L0 is TopK's; where not, the phrase says so.
    """
    columns = ("world", "variant", "baseline", "metric", "group", "diff", "lo", "hi")
    frame = tidy.prepare(differences, columns)
    macros = {}
    for row in frame.itertuples():
        sign = -1 if row.metric in LOWER_IS_BETTER else 1
        low, high = sorted((sign * row.lo, sign * row.hi))
        better, undecided, worse = PHRASES.get(row.metric, OTHERWISE)
        phrase = better if low > 0 else worse if high < 0 else undecided
        said = phrase.format(s=row.group, b=tidy.display(row.baseline))
        versus = "" if row.baseline == "topk" else f"Vs {row.baseline}"
        group = "" if row.group == "all" else row.group
        equal = matched.get((row.world, row.system), True)
        equal = equal and matched.get((row.world, row.baseline), True)
        name = "verdict" + camel(row.world, row.system, versus, row.metric, group)
        macros[name] = (
            rf"{escape(said)} (difference ${row.diff:+.3f}$, "
            rf"95\% interval [${row.lo:.3f}$, ${row.hi:.3f}$]"
            + (")" if equal else "; L0 not matched)")
        )
    return macros


def best(results: pd.DataFrame) -> dict[str, str]:
    r"""``\best…``: the learned system of matched L0 with the highest mean, and that mean."""
    frame = tidy.main(tidy.prepare(results))
    matched = tidy.matched_l0(frame)
    equal = [
        bool(matched.get(key, False)) for key in zip(frame["world"], frame["system"], strict=True)
    ]
    frame = frame[pd.Series(equal, frame.index) & ~frame["system"].map(tidy.is_null)]
    macros = {}
    for metric, group in BEST:
        rows = frame[(frame["metric"] == metric) & (frame["group"] == group)]
        for world in rows["world"].unique():
            table = tidy.summary(rows[rows["world"] == world], ("system",))
            top = table.loc[table["mean"].idxmax()]
            name = "best" + camel(world, metric, "" if group == "all" else group)
            macros[name] = (
                f"{escape(tidy.display(top['system']))} ({tidy.number(metric, top['mean'])})"
            )
    return macros


def forgotten(results: pd.DataFrame) -> dict[str, str]:
    r"""``\verdict…Unlearn…``: the lowest forget accuracy at which both retain sets keep 0.99."""
    if not results["metric"].str.startswith("unlearn_").any():
        return {}
    macros = {}
    for (world, system, strategy), rows in tidy.unlearning(results).groupby(
        ["world", "system", "strategy"]
    ):
        kept = rows[(rows["near"] >= RETAINED) & (rows["far"] >= RETAINED)]
        top = kept.loc[kept["forget"].idxmin()] if len(kept) else rows.loc[rows["forget"].idxmin()]
        said = "leaves forget accuracy at" if len(kept) else "never keeps"
        numbers = {name: f"{top[name]:.2f}" for name in ("forget", "near", "far")}
        setting = escape(", ".join(str(top["group"]).split("|")[1:]))
        if len(kept):
            said += " {forget} with {near} of the near and {far} of the far answers kept"
        else:
            said += (
                rf" {RETAINED} of both retain sets; at its lowest forget accuracy, {{forget}}, it"
                " keeps {near} of the near and {far} of the far answers"
            )
        macros["verdict" + camel(world, system, "unlearn", strategy)] = (
            said.format(**numbers) + f" ({setting})"
        )
    return macros


def facts(given: Mapping[str, object]) -> dict[str, str]:
    r"""``\fact…`` from the pipeline's own record: tokens, widths, versions."""
    macros = {}
    for key, value in given.items():
        if isinstance(value, Real) and float(value).is_integer():  # NumPy's numbers too
            whole = round(float(value))
            text = f"{whole:,}" if abs(whole) >= 10_000 else str(whole)
            macros["fact" + camel(key)] = text.replace(",", r"\,")
        else:
            macros["fact" + camel(key)] = escape(str(value))
    return macros


def used(source: str, part: str = "") -> set[str]:
    r"""The ``\num``, ``\verdict``, ``\best``, ``\fact`` macros of one part of the paper in a
    source, comments aside."""
    text = re.sub(r"(?<!\\)%.*", "", source)
    kinds = "|".join(named(kind, part) for kind in KINDS)
    return set(re.findall(rf"\\((?:{kinds})[A-Z][A-Za-z]*)", text))


def named(macro: str, part: str) -> str:
    """The macro's name in a part: ``num…`` is ``fullNum…`` in ``full``."""
    return part + macro[0].upper() + macro[1:] if part else macro


def numbers_tex(
    results: pd.DataFrame,
    differences: pd.DataFrame,
    main_tex: str,
    given: Mapping[str, object] | None = None,
    smoke: bool = False,
    partial: bool = False,
    part: str = "",
) -> str:
    r"""The text of ``generated/numbers.tex``: every macro in use, sorted, one a line.

    ``main_tex`` is the source of the paper, ``part`` the part of it that is filled. A macro that
    it uses and the results do not give is a :class:`tsae.errors.UserError` that names it. A
    ``partial`` run, one that leaves out worlds or stages, prints "not measured in this run" there
    instead; smoke runs are partial.
    ``\ifsmoke`` and ``\ifpartial`` tell the paper which it is.
    """
    matched = tidy.matched_l0(tidy.prepare(results))
    macros = values(results) | verdicts(differences, matched)
    macros |= best(results) | forgotten(results)
    macros |= facts(given or {})
    macros = {named(name, part): text for name, text in macros.items()}
    wanted = used(main_tex, part)
    missing = sorted(wanted - set(macros))
    partial = partial or smoke
    if missing and not partial:
        names = ", ".join("\\" + name for name in missing)
        raise UserError(
            f"The paper uses {len(missing)} number(s) that the results do not hold ({names}): "
            "run the stage that measures them, or take them out of paper/main.tex."
        )
    macros |= dict.fromkeys(missing, r"\textit{[not measured in this run]}")
    lines = ["% Made from the results by lab.paper.tables.numbers_tex; do not edit."]
    for name, value in () if part else (("smoke", smoke), ("partial", partial)):
        lines += [rf"\newif\if{name}", rf"\{name}{str(value).lower()}"]
    lines += [rf"\newcommand{{\{name}}}{{{macros[name]}}}" for name in sorted(wanted)]
    return "\n".join(lines) + "\n"
