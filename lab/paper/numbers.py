r"""Every number and every verdict in the text, as LaTeX macros made from the results.

**Names.** A macro is a kind and the CamelCase of its key, digits spelled out, since TeX names hold
letters only: ``\num`` + world + system [+ ``Ablation`` + ablation] + metric [+ group], so the FVE
of ``conv`` on ``microworld`` is ``\numMicroworldConvFve``, ``ap`` of ``document:domain`` read
through a moving average ``\numMicroworldEmaTopkApDocumentDomain``. ``Se`` at the end is the
standard error. Group ``all`` is left out.

``\verdict`` + world + system [+ ``Vs`` + baseline, when it is not ``topk``] + metric [+ group] says
``better than TopK``, ``worse than …``, ``equivalent to …`` or ``not shown to differ from …``;
``\gap`` with the same name is the difference with its interval. ``\kept`` + world + system +
strategy is the lowest forget accuracy at which both retain sets keep their share; ``\fact`` + key is
a fact of the run.

A profile that fills one part of the paper puts that part's name before each: the ``study``
profile's FVE is ``\studyNumMicroworldConvFve``. Only macros that the paper uses are written.
"""

import re
from collections.abc import Mapping
from numbers import Real

import pandas as pd

from lab.paper.tables import escape
from lab.results import tidy
from lab.results.metrics import RETAINED
from lab.results.systems import SYSTEMS, display
from tsae.errors import UserError

DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
KINDS = ("num", "verdict", "gap", "kept", "fact")
SAID = {
    "better": "better than {}",
    "worse": "worse than {}",
    "equivalent": "equivalent to {}",
    "undecided": "not shown to differ from {}",
}
UNMEASURED = r"\textit{[not measured in this run]}"


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


def verdicts(differences: pd.DataFrame, matched: pd.Series | None = None) -> dict[str, str]:
    r"""``\verdict…`` and ``\gap…`` of every paired difference.

    ``matched``: whether a (world, system)'s L0 is TopK's; where not, the verdict says so.
    """
    macros = {}
    unequal = set() if matched is None else {key for key, equal in matched.items() if not equal}
    for row in tidy.judged(differences).itertuples():
        group = "" if row.group == "all" else row.group
        versus = "" if row.baseline == "topk" else f"Vs {row.baseline}"
        name = camel(row.world, row.system, versus, row.metric, group)
        said = SAID[row.verdict].format(escape(display(row.baseline)))
        sides = {(row.world, row.system), (row.world, row.baseline)}
        macros["verdict" + name] = said + (" (at another L0)" if sides & unequal else "")
        ends = (f"{end:+.3f}" for end in (row.lo, row.hi))
        macros["gap" + name] = f"${row.diff:+.3f}$ [${'$, $'.join(ends)}$]"
    return macros


def kept(results: pd.DataFrame) -> dict[str, str]:
    r"""``\kept…``: the lowest forget accuracy at which near *and* far keep 0.99."""
    if not results["metric"].eq("unlearn_forget_accuracy").any():
        return {}
    macros = {}
    table = tidy.unlearning(results)
    for (world, system, strategy), rows in table.groupby(["world", "system", "strategy"]):
        low = rows.loc[rows["retained"] >= RETAINED[0], "forget"].min()
        macros["kept" + camel(world, system, strategy)] = "none" if low != low else f"{low:.2f}"
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
    r"""The macros of one part of the paper in a source, comments aside."""
    text = re.sub(r"(?<!\\)%.*", "", source)
    kinds = "|".join(named(kind, part) for kind in KINDS)
    return set(re.findall(rf"\\((?:{kinds})[A-Z][A-Za-z]*)", text)) | wished(text, part)


def wished(source: str, part: str = "") -> set[str]:
    r"""The macros behind ``\said{…}`` and ``\gapof{…}``, which the paper takes from the study, of
    several seeds, where that gives them, and else from the main part."""
    kinds = {"said": "verdict", "gapof": "gap"}
    found = re.findall(r"\\(said|gapof)\{([A-Z][A-Za-z]*)\}", source)
    return {named(kinds[kind] + name, part) for kind, name in found}


def named(macro: str, part: str) -> str:
    """The macro's name in a part: ``num…`` is ``studyNum…`` in ``study``."""
    return part + macro[0].upper() + macro[1:] if part else macro


def numbers_tex(
    results: pd.DataFrame,
    differences: pd.DataFrame,
    source: str,
    given: Mapping[str, object] | None = None,
    smoke: bool = False,
    partial: bool = False,
    part: str = "",
) -> str:
    r"""The text of ``generated/numbers.tex``: every macro in use, sorted, one a line.

    ``source`` is the source of the paper, ``part`` the part of it that is filled. A macro that it
    uses and the results do not give is a :class:`tsae.errors.UserError` that names it. A
    ``partial`` run, one that leaves out worlds or stages, prints "not measured in this run" there
    instead; smoke runs are partial.
    ``\ifsmoke`` and ``\ifpartial`` tell the paper which it is.
    """
    matched = tidy.matched_l0(tidy.prepare(results))
    macros = values(results) | verdicts(differences, matched)
    macros |= kept(results) | facts(given or {})
    macros |= {"fact" + camel("systems"): str(len(set(results["variant"]) & set(SYSTEMS)))}
    macros = {named(name, part): text for name, text in macros.items()}
    wanted = used(source, part)
    if part:
        wanted -= wished(source, part) - set(macros)
    missing = sorted(wanted - set(macros))
    partial = partial or smoke
    if missing and not partial:
        names = ", ".join("\\" + name for name in missing)
        raise UserError(
            f"The paper uses {len(missing)} number(s) that the results do not hold ({names}): "
            "run the stage that measures them, or take them out of paper/main.tex."
        )
    macros |= dict.fromkeys(missing, UNMEASURED)
    lines = ["% Made from the results by lab.paper.numbers; do not edit."]
    for name, value in () if part else (("smoke", smoke), ("partial", partial)):
        lines += [rf"\newif\if{name}", rf"\{name}{str(value).lower()}"]
    lines += [rf"\newcommand{{\{name}}}{{{macros[name]}}}" for name in sorted(wanted)]
    return "\n".join(lines) + "\n"
