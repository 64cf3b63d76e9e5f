"""Plans, fingerprints, tables and published files of the engine, on a tiny repository."""

import subprocess
import sys

import pandas as pd
import pytest
from tiny_project import PARAMETERS, finished, make_root, world, write_notebook, write_profile

from lab.pipeline import notebooks, paper, plan
from lab.pipeline.execution import inputs
from lab.pipeline.progress import duration, estimate, machine, remaining, step_seconds
from lab.pipeline.stages import keep, kept, other_parts, require_unchanged
from lab.results.rows import label_rows, merge
from tsae.errors import UserError

KEYS = dict(world="microworld", layer=2, variant="topk", act="topk", seed=0)


def directories(stages) -> dict[str, str]:
    return {stage.name: stage.directory for stage in stages}


def test_plan_has_one_stage_per_cell_of_the_grid(tmp_path):
    variants = [{"variant": "topk", "act": "topk"}, {"variant": "conv", "seeds": [0, 1]}]
    grid = [{"variant": "conv", "sweep": {"window": [1, 2], "k": [3]}}]
    path = make_root(
        tmp_path,
        {
            "threads": {"worlds": 2},
            "worlds": [
                world(variants=variants, evaluate={"chunk": 2}, unlearn={}, ablate={"grid": grid})
            ],
        },
    )
    stages = plan(path, tmp_path)
    assert [stage.name for stage in stages] == [
        "worlds/microworld",
        "train/microworld-topk-s0",
        "train/microworld-conv-s0",
        "train/microworld-conv-s1",
        "evaluate/microworld-1",
        "evaluate/microworld-2",
        "unlearn/microworld",
        "ablate/microworld",
        "figures/all",
    ]
    found = {stage.name: stage for stage in stages}
    made = found["worlds/microworld"]
    assert (made.threads, found["figures/all"].threads) == (2, 1)
    assert made.directory.startswith("results/tiny/worlds/microworld-")
    conv = found["train/microworld-conv-s1"].parameters
    assert (conv["world_dir"], conv["seed"], conv["k"]) == (made.directory, 1, 2)
    second = found["evaluate/microworld-2"]
    assert second.inputs == ("worlds/microworld", "train/microworld-conv-s1")
    assert second.parameters["sae_dirs"] == [found["train/microworld-conv-s1"].directory]
    runs = found["ablate/microworld"].parameters["grid"]
    assert [(run["ablation"], run["options"], run["k"]) for run in runs] == [
        ("window=1", {"window": 1}, 2),
        ("window=2", {"window": 2}, 2),
        ("k=3", {}, 3),
    ]
    assert len(found["figures/all"].parameters["stage_dirs"]) == 8


def test_entries_of_a_world_have_names_and_say_what_they_measure(tmp_path):
    variants = [{"variant": "topk", "act": "topk", "seeds": [0, 1]}, {"variant": "conv"}]
    entries = [{"chunk": 2}, {"name": "slow", "only": ["conv"]}]
    grids = [{"name": name, "grid": [{"variant": name, "ablation": "base"}]} for name in "ab"]
    path = make_root(
        tmp_path, {"worlds": [world(variants=variants, evaluate=entries, ablate=grids)]}
    )
    found = {stage.name: stage for stage in plan(path, tmp_path)}
    measured = {name: s.inputs[1:] for name, s in found.items() if name.startswith("evaluate")}
    assert measured == {
        "evaluate/microworld-1": ("train/microworld-topk-s0", "train/microworld-topk-s1"),
        "evaluate/microworld-2": ("train/microworld-conv-s0",),
        "evaluate/microworld-slow": ("train/microworld-conv-s0",),
    }
    for name in "ab":
        (run,) = found[f"ablate/microworld-{name}"].parameters["grid"]
        assert run["variant"] == name


def test_the_structure_sweep_is_a_stage_a_strength(tmp_path):
    sizes = {"limit_tokens": 10, "selection_tokens": 20}
    sweep = {"strengths": [0.0, 0.5], "runs": [{"variant": "topk"}], **sizes}
    path = make_root(tmp_path, {"worlds": [world()], "structure": sweep})
    found = {s.name: s.parameters for s in plan(path, tmp_path) if s.name.startswith("ablate")}
    assert list(found) == ["ablate/structure-0", "ablate/structure-0.5"]
    half = found["ablate/structure-0.5"]
    assert half["structure"] == {"runs": [{"variant": "topk"}], "strengths": [0.5]}
    assert half["limit_tokens"] == 10 and half["world_dir"] == ""
    stage = next(s for s in plan(path, tmp_path) if s.name == "ablate/structure-0.5")
    assert list(inputs(stage)) == []  # it builds a world of its own


def test_plan_loads_neither_torch_nor_pandas():
    code = "import sys, lab.pipeline.__main__; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.fixture
def coded(tmp_path):
    """A root whose 03_train imports a small package; gives a function that plans it."""
    files = {
        "tsae/__init__.py": "",
        "tsae/used.py": "from lab.deep import inner\nVALUE = 1\n",
        "tsae/unused.py": "VALUE = 1\n",
        "lab/__init__.py": "",
        "lab/deep/__init__.py": "",
        "lab/deep/inner.py": "VALUE = 1\n",
        "lab/deep/words.txt": "one\n",
        "lab/open/__init__.py": "import pkgutil\n",
        "lab/open/a.py": "VALUE = 1\n",
        "lab/pipeline/__init__.py": "VALUE = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    path = make_root(tmp_path, {"worlds": [world(variants=[{"variant": "topk"}])]})
    cells = ("%matplotlib inline\nfrom tsae import used\nimport lab.pipeline", "import lab.open")
    write_notebook(tmp_path / "notebooks/03_train.ipynb", PARAMETERS["03_train"], *cells)
    return tmp_path, lambda: directories(plan(path, tmp_path, house=tmp_path))


@pytest.mark.parametrize(
    "name, text, counts",
    [
        ("tsae/used.py", "from lab.deep import inner\nVALUE = 2\n", True),
        ("tsae/used.py", "from lab.deep import inner\n# why\nVALUE  =  1\n", False),
        ("tsae/used.py", '"""New words."""\nfrom lab.deep import inner\nVALUE = 1\n', False),
        ("tsae/unused.py", "VALUE = 2\n", False),
        ("lab/deep/inner.py", "VALUE = 2\n", True),
        ("lab/deep/words.txt", "two\n", True),
        ("lab/open/a.py", "VALUE = 2\n", True),
        ("lab/open/b.py", "VALUE = 2\n", True),
        ("lab/pipeline/__init__.py", "VALUE = 2\n", False),
    ],
)
def test_directory_changes_with_reached_code_alone(coded, name, text, counts):
    house, planned = coded
    before = planned()
    (house / name).write_text(text)
    after = planned()
    changed = {stage for stage in before if before[stage] != after[stage]}
    assert changed == ({"train/microworld-topk-s0", "figures/all"} if counts else set())


def test_directory_changes_with_cells_parameters_and_text(tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("one")
    options = {"text": "own.txt"}
    path = make_root(tmp_path, {"worlds": [world(options=options)]})
    before = directories(plan(path, tmp_path))
    text.write_text("two")
    other_text = directories(plan(path, tmp_path))
    write_profile(tmp_path, {"worlds": [world(options=options, seed=1)]})
    other_seed = directories(plan(path, tmp_path))
    write_notebook(tmp_path / "notebooks/07_figures.ipynb", PARAMETERS["07_figures"], "2")
    other_cell = directories(plan(path, tmp_path))
    chain = [before, other_text, other_seed, other_cell]
    assert len({step["figures/all"] for step in chain}) == 4
    assert len({step["worlds/microworld"] for step in chain}) == 3


@pytest.mark.parametrize(
    "profile, words",
    [
        ({"worlds": []}, "at least one world"),
        ({"worlds": [world()], "sedes": [0]}, "unknown key 'sedes'"),
        ({"worlds": [world(train={"steps": 3, "lr": "1e-3"})]}, "write 0.001"),
        ({"worlds": [{"world": "microworld"}]}, "sae, tokens, train is missing"),
        ({"worlds": [world(variants=[{"variant": "topk"}] * 2)]}, "two runs are both"),
        ({"worlds": [world(ablate={"grid": [{"variant": "conv"}]})]}, "lacks ablation or sweep"),
        ({"worlds": [world(world="local")]}, "add --model"),
    ],
)
def test_bad_profile_is_one_sentence(tmp_path, profile, words):
    with pytest.raises(UserError, match=words) as caught:
        plan(make_root(tmp_path, profile), tmp_path)
    assert "\n" not in str(caught.value)


def test_overrides_go_to_the_local_world_only(tmp_path):
    path = make_root(tmp_path, {"worlds": [world(world="local")]})
    (tmp_path / "model").mkdir()
    stage = plan(path, tmp_path, {"model": "model", "layer": 3})[0]
    assert (stage.parameters["options"], stage.parameters["layer"]) == ({"model": "model"}, 3)
    write_profile(tmp_path, {"worlds": [world()]})
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
    for name in "abc":
        (tmp_path / name).mkdir()
    pd.DataFrame({"value": [2, 1]}).to_parquet(tmp_path / "a" / "results.parquet")
    pd.DataFrame({"value": [3]}).to_parquet(tmp_path / "c" / "results.parquet")
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
    measured = "a two-second measurement of this machine, 3.0 times the profile's"
    assert estimate(stages, tmp_path, 1, 3.0) == f"5 min by {measured}"
    finished(tmp_path / stages[0].directory, seconds=20.0)  # twice as long as expected
    assert remaining(stages, tmp_path, 1) == 2 * (3 * 20 + 30)
    assert estimate(stages, tmp_path, 1, 3.0) == "3 min by what is done"
    assert [duration(s) for s in (41.2, 360, 9000)] == ["41 s", "6 min", "2.5 h"]


def test_the_machine_is_measured_against_the_profiles_step():
    assert machine({}) == 1.0
    here = step_seconds()
    assert 0 < here < 5
    slower = machine({"step_seconds": here / 50}) / machine({"step_seconds": here * 50})
    assert slower > 100  # 2500 but for what else the machine does


def test_a_kept_plan_is_the_plan_and_a_changed_text_stops_its_stage(tmp_path):
    (text := tmp_path / "own.txt").write_text("one")
    for name in ("paper/main.tex", "paper/generated/more/numbers.tex"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    given = world(options={"text": "own.txt"}, variants=[{"variant": "topk"}])
    stages = plan(make_root(tmp_path, {"worlds": [given]}), tmp_path)
    keep(stages, 1.5, tmp_path / "plan.json")
    assert kept(tmp_path / "plan.json") == (stages, 1.5)
    for stage in stages:
        require_unchanged(stage, tmp_path)
    text.write_text("two")
    (tmp_path / "paper" / "generated" / "more" / "numbers.tex").write_text("3")
    for stage, changed in zip(stages, (True, False, False, True), strict=True):
        if changed:
            with pytest.raises(UserError, match=f"stage {stage.name}: a notebook, the code or"):
                require_unchanged(stage, tmp_path)
        else:
            require_unchanged(stage, tmp_path)


def test_tidy_keeps_outputs_and_drops_what_differs_run_by_run():
    output = {"output_type": "execute_result", "execution_count": 7, "data": {"text/plain": ["3"]}}
    warned = {"output_type": "stream", "name": "stderr", "text": ["/home/me/x.py: UserWarning"]}
    cell = {"cell_type": "code", "execution_count": 7, "source": ["1+2"]}
    bar = {
        "output_type": "display_data",
        "data": {notebooks.WIDGET: {}, "text/plain": ["Output()"]},
    }
    cell["outputs"] = [warned, bar, output]
    cell["metadata"] = {"tags": ["parameters"], "papermill": {"duration": 0.1}}
    prose = {"cell_type": "markdown", "metadata": {}, "source": ["Prose"]}
    given = {"cell_type": "code", "id": "5f3a", "metadata": {"tags": [notebooks.INJECTED]}}
    book = {"cells": [prose, cell, given], "metadata": {"papermill": {}, "language_info": {}}}
    clean = notebooks.tidy({**book, "nbformat": 4, "nbformat_minor": 5})
    assert clean["cells"][0] == prose
    assert clean["cells"][1]["metadata"] == {"tags": ["parameters"]}
    assert clean["cells"][1]["execution_count"] == 1
    assert clean["cells"][1]["outputs"] == [{**output, "execution_count": 1}]
    assert clean["cells"][2]["id"] == notebooks.INJECTED
    assert "papermill" not in clean["metadata"]
    assert notebooks.tidy(clean) == clean


@pytest.mark.parametrize(
    "canonical, part, figure, number",
    [
        (True, "", "figures/f.pdf", "paper/generated/numbers.tex"),
        (False, "more", "figures/more/f.pdf", "paper/generated/more/numbers.tex"),
        (False, "", "results/tiny/figures/f.pdf", "results/tiny/paper/generated/numbers.tex"),
    ],
)
def test_only_profiles_that_fill_the_paper_write_the_shown_files(
    tmp_path, canonical, part, figure, number
):
    stage = plan(make_root(tmp_path, {"worlds": [world()]}), tmp_path)[-1]
    directory = tmp_path / stage.directory
    for name in ("figures/f.pdf", "generated/numbers.tex", "results.parquet"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    write_notebook(directory / "notebook.ipynb", "x = 1")
    (directory / "manifest.json").write_text("{}")
    assert paper.publish([stage], tmp_path, canonical, part) == 4
    assert (tmp_path / figure).read_text() == "figures/f.pdf"
    assert (tmp_path / number).read_text() == "generated/numbers.tex"
    assert (tmp_path / "results/tiny/results.parquet").is_file()
    assert (tmp_path / "figures").exists() == (canonical or bool(part))
    assert paper.publish([stage], tmp_path, canonical, part) == 0


def test_the_paper_is_made_anew_when_its_text_or_another_part_changes(tmp_path):
    path = make_root(tmp_path, {"worlds": [world()]})
    texts = {
        "paper/main.tex": ({"figures/all", "paper"}, "a"),
        "paper/reference_numbers.csv": ({"figures/all", "paper"}, "a,b"),
        "figures/more/f.pdf": ({"paper"}, "b"),
        "paper/generated/more/numbers.tex": ({"paper"}, "c"),
        "figures/f.pdf": (set(), "d"),  # the part that this profile makes itself
        "paper/generated/numbers.tex": (set(), "e"),
    }
    for name in texts:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    before = directories(plan(path, tmp_path))
    for name, (changed, text) in texts.items():
        (tmp_path / name).write_text(text)
        after = directories(plan(path, tmp_path))
        assert {stage for stage in before if before[stage] != after[stage]} == changed
        before = after


def test_a_part_is_put_beside_the_committed_ones(tmp_path):
    """The profile that fills ``more`` takes the main figures from the repository."""
    for name in ("figures/main.pdf", "figures/more/old.pdf", "figures/third/x.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    names = {
        part: [f.name for f in other_parts(tmp_path / "figures", part)] for part in ("", "more")
    }
    assert names == {"": ["more", "third"], "more": ["main.pdf", "third"]}


def test_value_that_is_not_json_is_refused(tmp_path):
    path = make_root(tmp_path, {"worlds": [world()], "figures": {"day": "DAY"}})
    path.write_text(path.read_text().replace('"DAY"', "2026-01-01"))  # YAML reads a date
    with pytest.raises(UserError, match="day is a date"):
        plan(path, tmp_path)
