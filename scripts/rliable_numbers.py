"""
What rliable computes, for the tests of our aggregates, which need no rliable then.

rliable cannot be imported with pandas 3, so it gets an environment of its own:

    python -m venv rliable && rliable/bin/pip install rliable==1.2.0 "pandas<3" "numpy<2"
    rliable/bin/python scripts/rliable_numbers.py tests/results/rliable.json
"""

import argparse
import json
from pathlib import Path

import numpy as np

# Of the two methods, and games: the numbers of runs may differ between methods.
SHAPES = [((5, 26), (5, 26)), ((3, 4), (10, 4)), ((1, 7), (2, 7)), ((6, 1), (4, 1))]
THRESHOLDS = [0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 8.0]
RESAMPLES = 50_000


def scores(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Skewed as scores of games are, some below 0, with ties."""
    drawn = np.random.RandomState(seed).lognormal(-1.5, 1.5, size=shape) - 0.1
    return np.round(drawn, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the JSON file")
    options = parser.parse_args()
    # Here, so that --help needs no rliable.
    from rliable import library, metrics

    functions = {
        "IQM": metrics.aggregate_iqm,
        "median": metrics.aggregate_median,
        "mean": metrics.aggregate_mean,
        "optimality gap": metrics.aggregate_optimality_gap,
    }
    cases = []
    for i, shapes in enumerate(SHAPES):
        x, y = (scores(shape, 2 * i + j) for j, shape in enumerate(shapes))
        case = {"x": x.tolist(), "y": y.tolist()}
        case["aggregates"] = {name: float(function(x)) for name, function in functions.items()}
        case["probability_of_improvement"] = float(metrics.probability_of_improvement(x, y))
        case["profile"] = library.score_distributions(x, np.array(THRESHOLDS)).tolist()
        # rliable draws from NumPy's global generator.
        np.random.seed(0)
        if len(x) > 1:
            together = {"x": x}
            _, found = library.get_interval_estimates(
                together, lambda m: np.array([f(m) for f in functions.values()]), reps=RESAMPLES
            )
            case["intervals"] = dict(zip(functions, found["x"].T.tolist(), strict=True))
            _, bands = library.create_performance_profile(together, np.array(THRESHOLDS), reps=RESAMPLES // 10)
            case["profile_band"] = bands["x"].tolist()
        if len(x) > 1 and len(y) > 1:
            _, found = library.get_interval_estimates(
                {"pair": [x, y]}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=RESAMPLES // 10
            )
            case["probability_interval"] = found["pair"].ravel().tolist()
        cases.append(case)
    options.output.write_text(json.dumps({"thresholds": THRESHOLDS, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
