"""The paper's source: no number by hand, every reference resolved, and it compiles."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import synthetic_tables as made

from lab.paper import figures, tables
from lab.paper.report import rewrite_numbers

PAPER = Path(__file__).parent.parent / "paper"
SOURCES = sorted(PAPER.glob("*.tex"), key=lambda path: (path.name != "main.tex", path.name))
MAIN = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
GENERATED = PAPER / "generated"
PARTS = sorted(folder.name for folder in GENERATED.iterdir() if folder.is_dir())
PROFILES = {"": "laptop", **{part: part for part in PARTS}}
BIB = (PAPER / "references.bib").read_text(encoding="utf-8")
BODY = re.sub(r"(?<!\\)%.*", "", MAIN[MAIN.index(r"\begin{abstract}") :])
KEYS = set(re.findall(r"@\w+\{([^,]+),", BIB))
REFERENCE = pd.read_csv(PAPER / "reference_numbers.csv", dtype=str)
RESULTS, DIFFERENCES = made.results(), made.differences()


def numbers(smoke=False):
    return tables.numbers_tex(RESULTS, DIFFERENCES, MAIN, made.FACTS, smoke)


def defined(text):
    return set(re.findall(r"\\newcommand\{\\(\w+)\}", text))


def test_every_macro_in_the_text_comes_from_the_results_and_no_other_is_written():
    assert len(tables.used(MAIN)) > 50 and tables.used(MAIN) == defined(numbers())
    for part in PROFILES:
        found = defined((GENERATED / part / "numbers.tex").read_text(encoding="utf-8"))
        assert tables.used(MAIN, part) == found, part or "the main part"


@pytest.mark.parametrize("part", PROFILES)
def test_the_numbers_of_the_text_are_those_of_the_committed_tables(part, tmp_path):
    """Written again from results/<profile>, byte for byte."""
    shutil.copytree(PAPER, tmp_path / "paper", ignore=shutil.ignore_patterns("generated", "*.pdf"))
    os.symlink(PAPER.parent / "results", tmp_path / "results")
    written = rewrite_numbers(PROFILES[part], tmp_path, part).read_bytes()
    assert written == (GENERATED / part / "numbers.tex").read_bytes()


def test_no_number_in_the_text_is_typed_by_hand():
    """Digits stand only in names, in the list of questions and in the protocol's thresholds."""
    text = re.sub(r"\\begin\{equation\}.*?\\end\{equation\}", "", BODY, flags=re.S)
    text = re.sub(r"\$[^$]*\$", "", text)
    text = re.sub(
        r"\\(?:cite\w*(?:\[[^]]*\])*|ref|eqref|label|tabled|drawn|system)\{[^}]*\}", "", text
    )
    text = re.sub(r"\\setlength\{[^}]*\}\{[^}]*\}", "", text)
    text = re.sub(r"SmolLM2-135M|\bL0\b|\bF1\b|4-bit|2\\%|95\\%|\\textbf\{\(\d\)\}", "", text)
    assert re.findall(r".{0,30}\d.{0,30}", text) == []


def test_citations_resolve_and_every_entry_is_cited():
    groups = re.findall(r"\\cite\w*(?:\[[^]]*\])*\{([^}]*)\}", BODY)
    cited = {key.strip() for group in groups for key in group.split(",")}
    assert cited <= KEYS
    assert KEYS <= cited | set(REFERENCE["source"])


def test_entries_are_whole():
    for entry in re.split(r"\n(?=@)", BIB.strip()):
        fields = set(re.findall(r"^\s*(\w+)\s*=", entry, flags=re.M))
        assert {"title", "author", "year"} <= fields, entry.split("\n")[0]
        assert fields & {"journal", "booktitle", "howpublished"}, entry.split("\n")[0]


def test_reference_numbers_have_a_source():
    assert list(REFERENCE.columns[:5]) == ["system", "setting", "metric", "value", "source"]
    assert not REFERENCE[["system", "setting", "metric", "value", "source"]].isna().any(axis=None)
    assert set(REFERENCE["source"]) <= KEYS | {"seed"}


def test_figures_and_tables_in_the_text_exist_and_are_referred_to():
    drawn = set(re.findall(r"\\drawn\{(\w+)\}", BODY))
    assert drawn == set(figures.__all__) - {"save"}
    for name in re.findall(r"\\drawn\{(\w+/\w+)\}", BODY):
        assert (PAPER.parent / "figures" / f"{name}.pdf").is_file(), name
    tabled = [GENERATED / f"{name}.tex" for name in re.findall(r"\\tabled\{([\w/]+)\}", BODY)]
    whole = BODY + "".join(file.read_text(encoding="utf-8") for file in tabled)
    labels = set(re.findall(r"\\label\{([^}]*)\}", whole))
    refs = set(re.findall(r"\\(?:eq)?ref\{([^}]*)\}", BODY))
    assert refs <= labels
    assert {name for name in labels if name.startswith(("fig:", "tab:"))} <= refs


def test_sections():
    wanted = (
        "Question",
        "Systems",
        "Results",
        "Negative results",
        "Ablations",
        "Limitations",
        "Related work",
    )
    assert set(wanted) <= set(re.findall(r"\\section\{([^}]*)\}", BODY))


@pytest.mark.skipif(not shutil.which("latexmk"), reason="latexmk is not installed")
@pytest.mark.parametrize("smoke", [False, True])
def test_the_paper_compiles_without_overfull_lines(tmp_path, smoke):
    for source in (*SOURCES, PAPER / "references.bib"):
        shutil.copy(source, tmp_path)
    for part in PARTS:
        shutil.copytree(GENERATED / part, tmp_path / "generated" / part)
        shutil.copytree(PAPER.parent / "figures" / part, tmp_path / "figures" / part)
    generated = {
        "numbers": numbers(smoke),
        "table_main": tables.main_table(RESULTS, smoke),
        "table_recovery": tables.recovery_table(RESULTS, DIFFERENCES, smoke),
        "table_ablation": tables.ablation_table(RESULTS, smoke),
        "table_reference": tables.reference_table(REFERENCE),
        "table_cost": (GENERATED / "table_cost.tex").read_text(encoding="utf-8"),
    }
    if smoke:  # a partial run may leave a table out
        generated.pop("table_ablation")
    for name, text in generated.items():
        (tmp_path / "generated" / f"{name}.tex").write_text(text, encoding="utf-8")
    # One small picture stands for all: how they look is for the eye, that they are found is here.
    drawn = figures.curves(made.curves(), smoke=smoke)
    for name in set(figures.__all__) - {"save"}:
        if not (smoke and name == "heatmap"):  # a smoke run may leave one out
            figures.save(drawn, tmp_path / "figures", name)
    environment = os.environ | {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:]
    log = (tmp_path / "main.log").read_text(errors="replace")
    assert smoke or "undefined" not in log
    assert [line for line in log.splitlines() if line.startswith("Overfull")] == []
    assert b"/Type3" not in (tmp_path / "main.pdf").read_bytes()
