"""Plans, fingerprints, tables and published files of the engine, on a tiny repository."""

import json
import os
import subprocess
import sys
from copy import deepcopy

import pandas as pd
import pytest
from tiny_project import PARAMETERS, finished, make_root, world, write_files, write_notebook

from lab.measures import DEFAULT
from lab.pipeline import notebooks, paper, plan
from lab.pipeline.estimate import duration, estimate, remaining, step_seconds
from lab.pipeline.planner import FAMILIES, keep, kept, require_unchanged
from lab.results.rows import label_rows, merge
from tsae.errors import UserError

KEYS = dict(world="microworld", layer=2, variant="topk", act="topk", seed=0)
TOPK = {"variant": "topk", "act": "topk"}


def directories(stages) -> dict[str, str]:
    return {stage.name: stage.directory for stage in stages}


def changed(before, after) -> set[str]:
    return {stage for stage in before if before[stage] != after[stage]}


def test_plan_has_one_stage_per_cell_of_the_grid(tmp_path):
    grid = [{"variant": "conv", "sweep": {"window": [1, 2], "k": [3]}}]
    variants = [TOPK, {"variant": "conv", "seeds": [0, 1]}]
    cells = {"evaluate": {"chunk": 2}, "unlearn": {}, "ablate": {"grid": grid}}
    given = {"threads": {"worlds": 2}, "worlds": [world(variants=variants, **cells)]}
    found = {stage.name: stage for stage in plan(make_root(tmp_path, given), tmp_path)}
    kinds = "worlds", "train", "train", "train", "evaluate", "evaluate", "unlearn", "ablate"
    rest = "", "-topk-s0", "-conv-s0", "-conv-s1", "-1", "-2", "", ""
    names = [f"{kind}-microworld{end}" for kind, end in zip(kinds, rest, strict=True)]
    assert list(found) == [*names, "figures"]
    made = found["worlds-microworld"]
    assert (made.parameters["threads"], found["figures"].parameters["threads"]) == (2, 1)
    assert made.directory.startswith("results/stages/worlds-microworld-")
    conv = found["train-microworld-conv-s1"].parameters
    assert (conv["world_dir"], conv["seed"], conv["k"]) == (made.directory, 1, 2)
    second = found["evaluate-microworld-2"]
    assert second.inputs == ["worlds-microworld", "train-microworld-conv-s1"]
    assert second.parameters["sae_dirs"] == [found["train-microworld-conv-s1"].directory]
    runs = found["ablate-microworld"].parameters["grid"]
    assert [(run["ablation"], run["options"], run["k"]) for run in runs] == [
        ("window=1", {"window": 1}, 2),
        ("window=2", {"window": 2}, 2),
        ("k=3", {}, 3),
    ]
    assert len(found["figures"].parameters["stage_dirs"]) == 8


def test_entries_of_a_world_have_names_and_say_what_they_measure(tmp_path):
    variants = [{**TOPK, "seeds": [0, 1]}, {"variant": "conv"}]
    entries = [{"chunk": 2}, {"name": "slow", "only": ["conv", "topk-s1"]}]
    entries += [{"name": "spread", "seeds": [1]}]
    bare = {"variant": "topk"}
    grids = [{"name": "a", "grid": [{**bare, "ablation": "base"}]}]
    grids += [{"name": "b", "ablation": "temporal=0", "grid": [bare]}]
    given = world(variants=variants, evaluate=entries, ablate=grids)
    seconds = {"evaluate": 5, "evaluate/microworld": 6, "evaluate/microworld-slow": 7}
    path = make_root(tmp_path, {"worlds": [given], "seconds": seconds})
    found = {stage.name.partition("-microworld-")[::2]: stage for stage in plan(path, tmp_path)}
    one, other, conv = (f"train-microworld-{name}" for name in ("topk-s0", "topk-s1", "conv-s0"))
    entries = {"1": [one, other], "2": [conv], "slow": [other, conv], "spread": [other]}
    evaluated = {name: s for (kind, name), s in found.items() if kind == "evaluate"}
    assert {name: s.inputs[1:] for name, s in evaluated.items()} == entries
    assert [s.seconds for s in evaluated.values()] == [6, 6, 7, 6]
    runs = [found["ablate", name].parameters["grid"] for name in "ab"]
    assert [run["ablation"] for (run,) in runs] == ["base", "temporal=0"]


@pytest.mark.parametrize(
    "seeds, conv, runs",
    [
        ([1, 2], {}, {"topk": [1, 2], "conv": [1, 2]}),
        ([1, 2], {"seeds": [5]}, {"topk": [1, 2], "conv": [5]}),
        ({"conv": [1, 2]}, {}, {"topk": [7], "conv": [1, 2]}),
        (None, {}, {"topk": [7], "conv": [7]}),
    ],
)
def test_a_world_names_its_seeds_for_all_or_by_variant(tmp_path, seeds, conv, runs):
    given = world(
        variants=[{"variant": "topk"}, {"variant": "conv", **conv}],
        ablate={"grid": [{"variant": "conv", "ablation": "base"}]},
        **({} if seeds is None else {"seeds": seeds}),
    )
    *stages, ablate, _ = plan(make_root(tmp_path, {"seeds": [7], "worlds": [given]}), tmp_path)
    found = {}
    for stage in stages[1:]:
        found.setdefault(stage.parameters["variant"], []).append(stage.parameters["seed"])
    assert found == runs
    assert [run["seed"] for run in ablate.parameters["grid"]] == [7]  # those are the main runs'


def test_profiles_share_the_stages_that_are_equal(tmp_path):
    path = make_root(tmp_path, {"worlds": [world(variants=[TOPK])]})
    tiny = directories(plan(path, tmp_path))
    more = json.dumps({"worlds": [world(variants=[TOPK, {"variant": "l1"}])]})
    write_files(path.parent, {"more.yaml": more})
    more = directories(plan(path.with_name("more.yaml"), tmp_path))
    assert set(tiny.items()) - set(more.items()) == {("figures", tiny["figures"])}


def test_plan_loads_neither_torch_nor_pandas():
    code = "import sys, lab.pipeline.__main__; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_families_that_nobody_names_are_those_that_are_measured():
    assert FAMILIES == set(DEFAULT)


ONE, TWO = "VALUE = 1\n", "VALUE = 2\n"
USED = "from lab.deep import inner\n"
CODED = {
    **dict.fromkeys(("tsae/__init__.py", "lab/__init__.py", "lab/deep/__init__.py"), ""),
    "tsae/used.py": USED + ONE,
    "lab/deep/words.txt": "one\n",
    "lab/open/__init__.py": "import pkgutil\n",
}
"""A small package, as far as its files are not :data:`ONE`."""
PLAIN = ("tsae/unused.py", "lab/deep/inner.py", "lab/open/a.py", "lab/pipeline/__init__.py")


@pytest.mark.parametrize(
    "name, text, counts",
    [
        ("tsae/used.py", USED + TWO, True),
        ("tsae/used.py", f"{USED}# why\nVALUE  =  1\n", False),
        ("tsae/used.py", f'"""New words."""\n{USED}{ONE}', False),
        ("tsae/unused.py", TWO, False),
        ("lab/deep/inner.py", TWO, True),
        ("lab/deep/words.txt", "two\n", True),
        ("lab/open/a.py", TWO, True),
        ("lab/open/b.py", TWO, True),
        ("lab/pipeline/__init__.py", TWO, False),
    ],
)
def test_directory_changes_with_reached_code_alone(tmp_path, name, text, counts):
    write_files(tmp_path, CODED | dict.fromkeys(PLAIN, ONE))
    path = make_root(tmp_path, {"worlds": [world(variants=[TOPK])]})
    cells = ("%matplotlib inline\nfrom tsae import used\nimport lab.pipeline", "import lab.open")
    write_notebook(tmp_path / "notebooks/03_train.ipynb", PARAMETERS["03_train"], *cells)
    before = directories(plan(path, tmp_path, house=tmp_path))
    (tmp_path / name).write_text(text)
    found = changed(before, directories(plan(path, tmp_path, house=tmp_path)))
    assert found == ({"train-microworld-topk-s0", "figures"} if counts else set())


def test_directory_changes_with_cells_parameters_and_text(tmp_path):
    """And a stage whose text changes while it runs, or whose plan is kept, says so."""
    given = {"options": {"text": "own.txt"}, "variants": [TOPK]}
    write_files(tmp_path, {"own.txt": "one", "paper/main.tex": "", "figures/f.pdf": ""})
    path = make_root(tmp_path, {"worlds": [world(**given)]})
    stages = plan(path, tmp_path)
    keep(stages, tmp_path / "plan.json")
    assert kept(tmp_path / "plan.json") == stages
    everything, last = set(directories(stages)), {"figures"}
    seeded = json.dumps({"worlds": [world(**given, seed=1)]})
    for name, text, remade in (
        ("own.txt", "two", everything),
        ("workflow/profiles/tiny.yaml", seeded, everything),
        ("paper/main.tex", "b", last),
        ("paper/reference_numbers.csv", "a,b", last),
        ("figures/f.pdf", "d", set()),
        ("notebooks/07_figures.ipynb", '{"cells": []}', last),
    ):
        before = directories(plan(path, tmp_path))
        write_files(tmp_path, {name: text})
        assert changed(before, directories(plan(path, tmp_path))) == remade
    with pytest.raises(UserError, match="a notebook, the code or a text changed while"):
        require_unchanged(stages[0], tmp_path)
    require_unchanged(plan(path, tmp_path)[0], tmp_path)


@pytest.mark.parametrize(
    "profile, words",
    [
        ({"worlds": []}, r"worlds: \[\] should be non-empty"),
        ({"worlds": [world()], "sedes": [0]}, "'sedes' was unexpected"),
        ({"worlds": [world(train={"steps": 3, "lr": "x"})]}, r"\[0\].train.lr: 'x' is not of type"),
        ({"worlds": [{"world": "microworld"}]}, "'tokens' is a required property"),
        ({"worlds": [world(variants=[{"variant": "topk"}] * 2)]}, "two runs are both"),
        ({"worlds": [world(variants=[{"variant": "topk", "kk": 2}])]}, "'kk' was unexpected"),
        ({"worlds": [world(ablate={"grid": [{"variant": "conv"}]})]}, "lacks ablation or sweep"),
        ({"worlds": [world(world="local")]}, "add --model"),
    ],
)
def test_bad_profile_is_one_sentence(tmp_path, profile, words):
    with pytest.raises(UserError, match=words) as caught:
        plan(make_root(tmp_path, profile), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_power_of_ten_is_a_number(tmp_path):
    path = make_root(tmp_path, {"worlds": [world(variants=[{**TOPK, "lr": "1e-3"}])]})
    path.write_text(path.read_text().replace('"1e-3"', "1e-3"))
    assert plan(path, tmp_path)[1].parameters["lr"] == 0.001


def test_overrides_go_to_the_local_world_only(tmp_path):
    path = make_root(tmp_path, {"worlds": [world(world="local")]})
    (tmp_path / "model").mkdir()
    stage, last = plan(path, tmp_path, {"model": "model", "layer": 3, "device": "cuda"})
    assert (stage.parameters["options"], stage.parameters["layer"]) == ({"model": "model"}, 3)
    assert stage.parameters["device"] == "cuda" and "device" not in last.parameters
    make_root(tmp_path, {"worlds": [world()]})
    assert plan(path, tmp_path, {"device": None})[0].parameters["device"] == "auto"
    with pytest.raises(UserError, match="has no local world"):
        plan(path, tmp_path, {"layer": 3})


def test_label_rows_puts_keys_first():
    table = label_rows([dict(metric="fve", group="", value=0.5, n=2)], **KEYS)
    keys = ["world", "layer", "variant", "act", "seed", "ablation"]
    assert list(table.columns) == [*keys, "reading", "metric", "group", "value", "n"]
    first = ["microworld", 2, "topk", "topk", 0, "", "own", "fve", "", 0.5, 2]
    assert table.iloc[0].tolist() == first
    table = label_rows([dict(metric="ap", group="", value=0.5, n=2, reading="ema")], **KEYS)
    assert table["reading"].tolist() == ["ema"]
    assert "reading" not in label_rows([dict(dwell=1)], **KEYS)  # a row of another table
    with pytest.raises(ValueError, match="lacks layer, variant, act, seed"):
        label_rows([], world="microworld")
    with pytest.raises(ValueError, match="already have seed"):
        label_rows([dict(seed=1)], **KEYS)


def test_merge_takes_the_stages_that_have_the_table_in_order(tmp_path):
    for name, values in {"a": [2, 1], "b": [], "c": [3]}.items():
        (tmp_path / name).mkdir()
        if values:
            pd.DataFrame({"value": values}).to_parquet(tmp_path / name / "results.parquet")
    stages = [finished(tmp_path / name) for name in "cba"]
    assert merge(stages, "results")["value"].tolist() == [3, 2, 1]
    with pytest.raises(UserError, match="None of the 3 stages"):
        merge(stages, "curves")
    with pytest.raises(UserError, match="does not exist"):
        merge([tmp_path / "d"], "results")


def test_estimate_scales_with_what_was_measured(tmp_path):
    variants = [{"variant": "topk", "seeds": [0, 1, 2]}]
    seconds = {"worlds": 10, "train": 20, "figures": 30}
    path = make_root(tmp_path, {"seconds": seconds, "worlds": [world(variants=variants)]})
    stages = plan(path, tmp_path)
    assert remaining(stages, tmp_path, 1) == 10 + 3 * 20 + 30
    assert remaining(stages, tmp_path, 2) == 60  # the chain 10 + 20 + 30 exceeds 100 / 2
    assert remaining(stages, tmp_path, 1, machine=3.0) == 3 * 100
    here = step_seconds()
    assert 0 < here < 5
    assert "h by a two-second measurement of this mach" in estimate(stages, tmp_path, 1, here / 1e3)
    assert estimate(stages, tmp_path, 1, None).startswith("2 min by")
    finished(tmp_path / stages[0].directory, seconds=20.0)  # twice as long as expected
    assert remaining(stages, tmp_path, 1) == 2 * (3 * 20 + 30)
    assert estimate(stages, tmp_path, 1, here) == "3 min by what is done"
    assert [duration(s) for s in (41.2, 360, 9000)] == ["41 s", "6 min", "2.5 h"]


def test_a_report_lists_its_own_tables_and_figures_alone():
    places = ["figures/b_c.pdf", "figures/b_c.png", "figures/study/d.pdf", "main.tex"]
    places += [f"generated/table_{name}.tex" for name in ("time", "claims", "reference")]
    told = "\\input{generated/table_time.tex}\n\\clearpage\n\\drawn{b_c}{b c}\n"
    assert paper.listing(places) == told


def test_tidy_keeps_outputs_and_drops_what_differs_run_by_run():
    output = {"output_type": "execute_result", "execution_count": 7, "data": {"text/plain": ["3"]}}
    warned = {"output_type": "stream", "name": "stderr", "text": ["/home/me/x.py: UserWarning"]}
    bar = {"output_type": "display_data", "data": {notebooks.WIDGET: {}, "text/plain": ["Out"]}}
    cell = {"cell_type": "code", "execution_count": 7, "source": ["1+2"]}
    cell |= {"outputs": [warned, bar, output]}
    cell |= {"metadata": {"tags": ["parameters"], "papermill": {"duration": 0.1}}}
    prose = {"cell_type": "markdown", "metadata": {}, "source": ["Prose"]}
    given = {"cell_type": "code", "id": "5f3a", "metadata": {"tags": [notebooks.INJECTED]}}
    book = {"cells": [prose, cell, given], "metadata": {"papermill": {}, "language_info": {}}}
    clean = notebooks.tidy(deepcopy(book))
    assert clean["cells"][0] == prose
    assert clean["cells"][1]["metadata"] == {"tags": ["parameters"]}
    assert clean["cells"][1]["execution_count"] == 1
    assert clean["cells"][1]["outputs"] == [{**output, "execution_count": 1}]
    assert clean["cells"][2]["id"] == notebooks.INJECTED
    assert "papermill" not in clean["metadata"]
    assert notebooks.tidy(deepcopy(clean)) == clean


@pytest.mark.parametrize(
    "settings, home, part",
    [({"canonical": True}, ".", ""), ({"figures": {"part": "more"}}, ".", "more"),
     ({}, "results/tiny", "")],
)  # fmt: skip
def test_only_profiles_that_fill_the_paper_write_the_shown_files(tmp_path, settings, home, part):
    """And the PDF is made from them and from the committed other parts alone."""
    stage = plan(make_root(tmp_path, {"worlds": [world()]}), tmp_path)[-1]
    directory, home = tmp_path / stage.directory, tmp_path / home
    names = ("figures/f.pdf", "generated/numbers.tex", "results.parquet", "manifest.json")
    write_files(directory, {name: name for name in names})
    write_notebook(directory / "notebook.ipynb", "x = 1")
    assert paper.publish("tiny", settings, [stage], tmp_path) == 4
    assert (home / "figures" / part / "f.pdf").read_text() == "figures/f.pdf"
    assert (home / "paper/generated" / part / "numbers.tex").read_text() == "generated/numbers.tex"
    assert (tmp_path / "results/tiny/results.parquet").is_file()
    assert (tmp_path / "figures").exists() == bool(settings)
    assert paper.publish("tiny", settings, [stage], tmp_path) == 0

    assert paper.home("tiny", settings, tmp_path) == home
    write_files(tmp_path, {"figures/main.pdf": "", "figures/third/x.pdf": "", "paper/main.tex": ""})
    taken = set(paper.sources(tmp_path, home))
    own = {f"figures/{part}/f.pdf".replace("//", "/"), "main.tex", "figures/third/x.pdf"}
    own |= {f"generated/{part}/numbers.tex".replace("//", "/")}
    assert taken == own | ({"figures/main.pdf"} if settings else set())
    write_files(home, {"paper/main.pdf": ""})
    assert paper.is_current(tmp_path, home / "paper/main.pdf")
    os.utime(tmp_path / "figures/third/x.pdf", (2e9, 2e9))
    assert not paper.is_current(tmp_path, home / "paper/main.pdf")
