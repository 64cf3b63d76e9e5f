"""The paper's source: no number by hand, every reference resolved, verdicts tied, and it compiles."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import synthetic_tables as made

from lab.paper import claims, numbers, register, report, style
from lab.results import tidy
from lab.results.metrics import METRICS, VERDICTS

PAPER = Path(__file__).parent.parent / "paper"
SOURCE = report.source(PAPER)
GENERATED = PAPER / "generated"
PARTS = [part for part in ("", "study") if (GENERATED / part / "numbers.tex").is_file()]
PROFILES = {"": "laptop", "study": "study"}
BIB = (PAPER / "references.bib").read_text(encoding="utf-8")
TEXT = re.sub(r"(?<!\\)%.*", "", SOURCE)
MAIN = (PAPER / "main.tex").read_text(encoding="utf-8")
PREAMBLE = MAIN[: MAIN.index(r"\begin{abstract}")]
BODY = re.sub(r"(?<!\\)%.*", "", SOURCE.replace(PREAMBLE, ""))
KEYS = set(re.findall(r"@\w+\{([^,]+),", BIB))
REFERENCE = pd.read_csv(PAPER / "reference_numbers.csv", dtype=str)
FOUND = made.found()


def defined(text):
    return set(re.findall(r"\\newcommand\{\\(\w+)\}", text))


@pytest.mark.parametrize("part", PARTS)
def test_the_numbers_of_the_text_are_those_of_the_committed_tables(part, tmp_path):
    """Written again from results/<profile>, byte for byte; and no macro beside those in use."""
    shutil.copytree(PAPER, tmp_path / "paper", ignore=shutil.ignore_patterns("generated", "*.pdf"))
    os.symlink(PAPER.parent / "results", tmp_path / "results")
    report.rewrite_numbers(PROFILES[part], tmp_path, part)
    for written in sorted((tmp_path / "paper" / "generated" / part).glob("*.tex")):
        assert written.read_bytes() == (GENERATED / part / written.name).read_bytes(), written.name
    text = (GENERATED / part / "numbers.tex").read_text(encoding="utf-8")
    used = numbers.used(SOURCE, part)
    assert defined(text) == used - (numbers.wished(SOURCE, part) if part else set()) | (
        defined(text) & numbers.wished(SOURCE, part)
    )
    if not part:  # a text that says what was not measured says that it is partial
        assert (numbers.UNMEASURED in text) == (r"\partialtrue" in text)


def test_no_number_in_the_text_is_typed_by_hand():
    """Digits stand only in names and in the protocol's thresholds."""
    text = re.sub(r"\\begin\{equation\}.*?\\end\{equation\}", "", BODY, flags=re.S)
    text = re.sub(r"\$[^$]*\$", "", text)
    text = re.sub(r"\\(?:cite\w*(?:\[[^]]*\])*|ref|label|setlength\{[^}]*\})\{[^}]*\}", "", text)
    text = re.sub(r"\\(?:drawn|studied)(?:\[[^]]*\])?\{[^}]*\}\{[^}]*\}", "", text)
    text = re.sub(r"SmolLM2-135M|ReLU\+L1|\bL0\b|\bF1\b|4-bit|2\\%|\.95|\.99", "", text)
    assert re.findall(r".{0,30}\d.{0,30}", text) == []


def test_verdict_words_about_systems_come_from_the_results():
    r"""No sentence says by hand that a system is better, worse or equivalent: a macro does. The
    words stand by themselves only where the paper says what they mean."""
    prose = BODY.replace(BODY[BODY.index(r"\paragraph{Verdicts.}") :].split("\n\n")[0], "")
    prose = re.sub(r"\\(?:drawn|studied)[^\n]*(?:\n  [^\n]*)*", "", prose)
    words = r"\b(?:better|worse|equivalent|outperforms?|beats?) (?:than|to)?"
    assert re.findall(rf"\\system\{{\w+\}}[^.]{{0,60}}?{words}", prose) == []
    said = numbers.verdicts(FOUND["differences"])
    judged = tidy.judged(FOUND["differences"])
    assert set(judged["verdict"]) <= set(VERDICTS) == set(numbers.SAID)
    for row in judged.itertuples():
        versus = "" if row.baseline == "topk" else f"Vs {row.baseline}"
        group = "" if row.group == "all" else row.group
        name = "verdict" + numbers.camel(row.world, row.system, versus, row.metric, group)
        assert said[name].startswith(numbers.SAID[row.verdict].format("")), name


def test_every_claim_names_a_measure_a_source_and_a_notebook():
    asked = claims.read(PAPER / "claims.yaml")
    assert len(asked) >= 12
    for claim in asked:
        assert claim["who"] in KEYS | {"ours"} and claim["ours"]["metric"] in METRICS
        assert (PAPER.parent / claim["notebook"]).is_file()


def test_citations_resolve_and_every_entry_is_cited():
    groups = re.findall(r"\\cite\w*(?:\[[^]]*\])*\{([^}]*)\}", BODY)
    cited = {key.strip() for group in groups for key in group.split(",")}
    assert cited <= KEYS
    assert KEYS <= cited | set(REFERENCE["source"])


def test_entries_are_whole_and_reference_numbers_have_a_source():
    for entry in re.split(r"\n(?=@)", BIB.strip()):
        fields = set(re.findall(r"^\s*(\w+)\s*=", entry, flags=re.M))
        assert {"title", "author", "year"} <= fields, entry.split("\n")[0]
        assert fields & {"journal", "booktitle", "howpublished"}, entry.split("\n")[0]
    columns = ["system", "setting", "metric", "value", "source"]
    assert list(REFERENCE.columns[:5]) == columns and not REFERENCE[columns].isna().any(axis=None)
    assert set(REFERENCE["source"]) <= KEYS | {"seed"}


def test_every_drawing_is_in_the_paper_and_everything_there_is_drawn_and_referred_to():
    drawings = register.drawings()
    drawn = re.findall(r"\\(?:drawn|studied)(?:\[[^]]*\])?\{(\w+)\}", BODY)
    tabled = re.findall(r"\\(?:tabled|studytable)\{(\w+)\}", BODY)
    shown = drawn + [f"table_{name}" for name in tabled]
    assert len(shown) == len(set(shown))
    assert set(shown) == set(drawings) | {"table_reference", "table_claims"}
    refs = set(re.findall(r"\\ref\{([^}]*)\}", BODY))
    floats = {f"fig:{name}" for name in drawn} | {f"tab:{name}" for name in tabled}
    sections = set(re.findall(r"\\label\{(sec:[^}]*)\}", BODY))
    equations = set(re.findall(r"\\label\{(eq:[^}]*)\}", BODY))
    assert floats <= refs <= floats | sections | equations


def compile_paper(folder, found, smoke, parts):
    """The PDF's folder, from synthetic results."""
    for file in PAPER.glob("*.*"):
        if file.suffix in {".tex", ".bib", ".csv", ".yaml"}:
            shutil.copy(file, folder)
    for part in parts:
        report.write_latex(found, folder / "generated" / part, smoke, True, part, folder)
        # One picture stands for all: how they look is for the eye, that they are found is here.
        (folder / "figures" / part).mkdir(parents=True, exist_ok=True)
        small, _ = style.save(register.draw("systems", smoke), folder, "one")
        for name in register.drawings():
            if not (smoke and name == "heatmap"):
                shutil.copy(small, folder / "figures" / part / f"{name}.pdf")
    environment = os.environ | {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("latexmk"), reason="latexmk is not installed")
@pytest.mark.parametrize("smoke", [False, True])
def test_the_paper_compiles_without_overfull_lines(tmp_path, smoke):
    """Whole with both parts; and where a figure, and the appendix, are missing."""
    run = compile_paper(tmp_path, FOUND, smoke, [""] if smoke else ["", "study"])
    assert run.returncode == 0, run.stdout[-2000:]
    log = (tmp_path / "main.log").read_text(errors="replace")
    assert "undefined references" not in log and "undefined citations" not in log
    wide = [line for line in log.splitlines() if line.startswith("Overfull \\hbox")]
    assert [line for line in wide if float(re.findall(r"\((\d+\.\d+)pt", line)[0]) > 3] == []
    assert b"/Type3" not in (tmp_path / "main.pdf").read_bytes()
