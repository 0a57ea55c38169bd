"""The search: bounded, and it proposes the best that fits."""

import dataclasses

import pytest

from rpt import compile_search, compile_tables, sharding
from rpt.model import config as model_config

MODEL = model_config.ModelConfig(
    vocab_size=64, width=32, num_layers=2, num_heads=8, num_kv_heads=4, head_width=8, ff_width=64
)
LIMITS = compile_search.Limits(8, MODEL)
FIRST = compile_search.Candidate(sharding.MeshConfig(1, 8, 1), "full", 4, 32, 16)
GAIN = {"full": 1.0, "dots": 1.3, "none": 1.5}


def rate(candidate: compile_search.Candidate) -> float:
    """Rises with every coordinate, so that the search must move along all of them."""
    mesh = 1 + candidate.mesh.tensor / 10
    first_cache = 1 - candidate.chunk_tokens / 1000
    return (
        mesh * GAIN[candidate.remat] * candidate.micro_branches * candidate.batch_size * first_cache
    )


def memory(candidate: compile_search.Candidate) -> float:
    kept = {"full": 1, "dots": 3, "none": 9}[candidate.remat]
    return kept * candidate.micro_branches * candidate.batch_size / candidate.mesh.tensor


def evaluate(candidate: compile_search.Candidate) -> compile_search.Outcome:
    fits = memory(candidate) <= 200
    return compile_search.Outcome(fits, rate(candidate) if fits else 0.0)


def test_it_proposes_the_best_that_fits_and_moves_along_every_coordinate():
    trials = compile_search.search(FIRST, LIMITS, evaluate, 100)
    best = compile_search.best(trials)
    assert best is not None
    assert memory(best.candidate) <= 200
    assert best.outcome.rate == max(t.outcome.rate for t in trials)
    assert best.candidate.mesh.tensor == 4
    assert best.candidate.remat == "none"
    assert {t.candidate.batch_size for t in trials} > {16}
    assert {t.candidate.micro_branches for t in trials} > {4}
    assert best.candidate.chunk_tokens == 16
    assert any(not t.outcome.fits for t in trials)


@pytest.mark.parametrize("most", [1, 3, 6])
def test_it_compiles_no_more_than_it_may(most):
    seen = []
    trials = compile_search.search(FIRST, LIMITS, lambda c: seen.append(c) or evaluate(c), most)
    assert len(seen) == len(trials) == most
    assert len(set(seen)) == most


def test_every_candidate_divides():
    """Six heads are not split over 4, nor 12 rows over 8."""
    model = dataclasses.replace(MODEL, num_heads=12, num_kv_heads=6)
    first = dataclasses.replace(FIRST, mesh=sharding.MeshConfig(1, 4, 2), batch_size=12)
    limits = compile_search.Limits(8, model)
    for trial in compile_search.search(first, limits, evaluate, 100):
        mesh = trial.candidate.mesh
        assert mesh.replica * mesh.fsdp * mesh.tensor == limits.devices
        assert model.num_kv_heads % mesh.tensor == 0
        assert trial.candidate.batch_size % (mesh.replica * mesh.fsdp) == 0


def test_where_nothing_fits_nothing_is_proposed():
    trials = compile_search.search(
        FIRST, LIMITS, lambda c: compile_search.Outcome(False, 0.0, "too large"), 4
    )
    assert compile_search.best(trials) is None
    assert "v5e:2x4; the config's own: too large. " in compile_search.why_none(trials, "v5e:2x4")


def test_the_table_says_why_a_candidate_is_out():
    """What was not compiled need not be too large."""
    reason = "not compiled: groups of devices that this reader does not know: a|b"
    trials = [
        compile_search.Trial(FIRST, compile_search.Outcome(False, 0.0, reason)),
        compile_search.Trial(FIRST, compile_search.Outcome(True, 1234.0)),
    ]
    said = compile_tables.of_search(trials)
    assert "| not compiled: groups of devices that this reader does not know: a/b |" in said
    assert "does not fit" not in said
    assert "| 1,234 |" in said
