"""Our SCR, TPP and absorption beside SAEBench's own functions on the same codes.

    python benchmarks/saebench_concepts.py --peers-python PATH

Units, residuals, a small ReLU dictionary and probe weights are drawn here and handed to both:
SAEBench 0.6 (in the peers' environment: the effects, ablations and scores of ``scr_and_tpp``, the
``FeatureAbsorptionCalculator`` of ``absorption``) and ours. SAEBench draws its negatives at random;
there the draw is replaced by "the first ones", as the cases are built here. The bar is 1e-3.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

NS = (1, 2, 5, 10)
UNITS, LENGTH, D, F = 40, 5, 16, 48
MAIN = (0, 3)
SCR = ("male / female", "professor / nurse", "male_professor / female_nurse")


def arrays() -> dict[str, np.ndarray]:
    """Three classes of units for TPP, four cells for SCR, tokens for absorption; a dictionary."""
    g = np.random.default_rng(0)
    W = g.normal(size=(F, D))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    centre = 0.35 * g.normal(size=(3, 1, 1, D))
    first, second = 0.5 * g.normal(size=(2, D))
    cells = np.array([[a * first + 1.5 * b * second for b in (-1, 1)] for a in (-1, 1)])
    made = {"W": W}
    made["tpp"] = centre + g.normal(size=(3, UNITS, LENGTH, D))
    made["scr"] = cells[:, :, None, None] + g.normal(size=(2, 2, UNITS, LENGTH, D))
    made["tokens"] = 0.6 * W[g.integers(0, F, 400)] + 0.3 * g.normal(size=(400, D)) + 0.2 * W[0]
    made["w"] = W[0] + 0.5 * W[3] + 0.2 * g.normal(size=D)
    return {name: array.astype(np.float32) for name, array in made.items()}


def codes(x: np.ndarray, W: np.ndarray) -> np.ndarray:
    """ReLU codes of a tied dictionary with a threshold."""
    return np.maximum(x @ W.T - 0.3, 0)


def tpp_cases(a: dict) -> dict:
    """One case a class: its units, then as many of the other classes, half of each."""
    from lab.measures.concepts.perturbation import Case

    x = a["tpp"].mean(2)
    z = codes(a["tpp"], a["W"]).mean(2)
    half, cases = UNITS // 2, {}
    for c in range(3):
        others = [o for o in range(3) if o != c]
        pick = [np.concatenate([v[c], *(v[o][:half] for o in others)]) for v in (x, z)]
        cases[str(c)] = Case(*pick, np.repeat([1, 0], UNITS))
    return cases


def scr_cases(a: dict) -> dict:
    """The cases of SCR under SAEBench's names: spurious, desired, and both together."""
    from lab.measures.concepts.perturbation import Case

    x, z = a["scr"].mean(3), codes(a["scr"], a["W"]).mean(3)
    sides = {
        SCR[0]: ([(1, 1), (0, 1)], [(1, 0), (0, 0)]),
        SCR[1]: ([(1, 1), (1, 0)], [(0, 1), (0, 0)]),
        SCR[2]: ([(1, 1)], [(0, 0)]),
    }
    return {
        name: Case(
            *(np.concatenate([v[c] for c in (*yes, *no)]) for v in (x, z)),
            np.repeat([1, 0], UNITS * len(yes)),
        )
        for name, (yes, no) in sides.items()
    }


def ours(a: dict) -> tuple[dict, dict]:
    """Scores, and the probes (direction and bias) that SAEBench is to use."""
    from lab.measures.concepts import absorption, perturbation
    from lab.measures.concepts.probing import fit

    found, probes = {}, {}
    tpp, scr = tpp_cases(a), scr_cases(a)
    for name, case in {**tpp, **scr}.items():
        probe = fit(case.x_UD, case.y_U)
        probes[name] = [probe.weights(D).tolist(), float(probe.model.intercept_[0])]
    for n, value in perturbation.tpp(tpp, tpp, a["W"], NS).items():
        found[f"tpp n={n}"] = value
    for direction, (spurious, desired) in enumerate(((0, 1), (1, 0)), start=1):
        asked = scr[SCR[desired]]
        base, oracle, after = perturbation.scr(
            scr[SCR[2]], (asked, asked), scr[SCR[spurious]], a["W"], NS
        )
        for n in NS:
            found[f"scr direction {direction} n={n}"] = (after[n] - base) / (oracle - base)
    w = a["w"] / np.linalg.norm(a["w"])
    full, fraction = absorption.absorbed(
        a["tokens"], codes(a["tokens"], a["W"]), w, a["W"], np.array(MAIN)
    )
    found["full absorption"] = float(full.mean())
    found["absorption fraction"] = float(fraction.mean())
    return found, probes


def theirs(path: str, probes: dict) -> dict:
    """The same scores by SAEBench's functions; runs in the peers' environment."""
    import torch
    from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
    from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
    from sae_bench.evals.sparse_probing.probe_training import Probe

    a = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    W = a["W"]
    sae = SimpleNamespace(
        W_dec=torch.nn.Parameter(W),
        device="cpu",
        encode=lambda x: (x @ W.T - 0.3).clamp_min(0),
        decode=lambda z: z @ W,
    )
    torch.randperm = torch.arange  # the first negatives, not random ones

    def probe(name):
        weight, bias = probes[name]
        made = Probe(D, torch.float32)
        made.net.weight.data = torch.tensor([weight])
        made.net.bias.data = torch.tensor([bias])
        return made

    def scores(acts, classes, scr):
        own = {name: probe(name) for name in classes}
        effects = scr_and_tpp.get_all_node_effects_for_one_sae(sae, own, classes, scr, acts, 1000)
        pooled = {name: x.mean(1) for name, x in acts.items()}
        clean = scr_and_tpp.get_probe_test_accuracy(own, classes, pooled, 1000, scr)
        ablated = scr_and_tpp.perform_feature_ablations(
            own, sae, 1000, acts, effects, list(NS), classes, 1000, scr
        )
        return clean, ablated

    classes = [str(c) for c in range(3)]
    clean, ablated = scores(dict(zip(classes, a["tpp"], strict=True)), classes, False)
    overall, _ = scr_and_tpp.create_tpp_plotting_dict(ablated, clean)
    found = {f"tpp n={n}": overall[f"tpp_threshold_{n}_total_metric"] for n in NS}

    cell = a["scr"]
    acts = {
        SCR[0]: torch.cat([cell[1, 1], cell[0, 1]]),
        "female_data_only": torch.cat([cell[1, 0], cell[0, 0]]),
        SCR[1]: torch.cat([cell[1, 1], cell[1, 0]]),
        "nurse_data_only": torch.cat([cell[0, 1], cell[0, 0]]),
        SCR[2]: cell[1, 1],
        "female_nurse_data_only": cell[0, 0],
    }
    clean, ablated = scores(acts, list(SCR), True)
    plotted = scr_and_tpp.get_scr_plotting_dict(ablated, clean)
    for direction in (1, 2):
        for n in NS:
            found[f"scr direction {direction} n={n}"] = plotted[f"scr_dir{direction}_threshold_{n}"]

    left = iter(a["tokens"])

    def run_with_cache(prompts, names_filter):
        x = torch.stack([next(left) for _ in prompts])
        return None, {names_filter[0]: torch.stack([x, x], 1)}

    model = SimpleNamespace(run_with_cache=run_with_cache, to_tokens=lambda _: [[0, 0]])
    calculator = FeatureAbsorptionCalculator(model, icl_word_list=["cat", "dog"])
    words = [f"w{i}" for i in range(len(a["tokens"]))]
    results = calculator.calculate_absorption(sae, words, a["w"], list(MAIN), 0, False).word_results
    found["full absorption"] = float(np.mean([r.is_full_absorption for r in results]))
    found["absorption fraction"] = float(np.mean([r.absorption_fraction for r in results]))
    return found


def main() -> None:
    """Compute both sides and print the table; status 1 when one differs by more than 1e-3."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", help="the peers' environment")
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    parser.add_argument("--probes", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        found = theirs(args.theirs, json.loads(Path(args.probes).read_text()))
        print("\n" + json.dumps({name: float(value) for name, value in found.items()}))
        return
    if not args.peers_python:
        parser.error("give --peers-python")
    made = arrays()
    own, probes = ours(made)
    with tempfile.TemporaryDirectory() as directory:
        path, probe_path = f"{directory}/codes.npz", f"{directory}/probes.json"
        np.savez(path, **made)
        Path(probe_path).write_text(json.dumps(probes))
        command = [args.peers_python, "-W", "ignore", __file__, "--theirs", path]
        command += ["--probes", probe_path]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(output.strip().splitlines()[-1])
    print(f"{'quantity':32s}{'SAEBench':>12s}{'ours':>12s}{'difference':>12s}")
    for name, value in own.items():
        gap = abs(value - found[name])
        print(f"{name:32s}{found[name]:12.5f}{value:12.5f}{gap:12.1e}")
    worst = max(abs(value - found[name]) for name, value in own.items())
    print(f"largest difference {worst:.1e}; bar 1e-3")
    sys.exit(worst > 1e-3)


if __name__ == "__main__":
    main()
