"""What one can import, and what importing costs."""

import os
import subprocess
import sys
from pathlib import Path

import sb3_sparse.plasticity as plasticity
from sb3_sparse.plasticity import measurement, metrics, resets

# As in version 0.2.
BEFORE = """
    METRICS Activations DormantRatio Interference Network ObservedBatch PlasticityCallback Probe ResetCallback SimplicityBias
    Spectrum dormant_ratio effective_rank feature_norm fraction_active_units gradient_gram gradient_interference gradient_norm
    interference_from_gram measure mlp parameter_norm pca_rank record_activations reset_model_ simba_actor simba_critic
    simplicity_bias_score spectral_complexity spectrum srank stable_rank threshold_rank
"""


def test_all_that_was_there_is_there():
    assert set(BEFORE.split()) <= set(plasticity.__all__)
    assert all(getattr(plasticity, name) is not None for name in plasticity.__all__)
    assert callable(plasticity.measure)


def test_rooms_are_exported_whole():
    rooms = set(metrics.__all__) | set(measurement.__all__) | set(resets.__all__)
    assert rooms | {"Network"} == set(plasticity.__all__)


def test_importing_brings_no_plotting_and_no_tables():
    code = """
import sys
import stable_baselines3, sb3_contrib, sb3_sparse
before = set(sys.modules)
import sb3_sparse.plasticity
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert new <= {"sb3_sparse"}, new
assert not {"matplotlib", "pandas"} & set(sys.modules)
"""
    root = str(Path(plasticity.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
