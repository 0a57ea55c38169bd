"""Cuts: which are allowed, and how they are drawn."""

import numpy as np
import pytest

from rpt import positions

OPTIONS = {
    "cuts_per_document": 4,
    "low_nats": 1.0,
    "high_nats": 2.0,
    "random_fraction": 0.0,
    "mode": "entropy",
    "seed": 3,
    "step": 5,
}


def scene(documents: int = 6, length: int = 60, seed: int = 0):
    """Entropies, eligible cuts and document ids of some documents."""
    generator = np.random.default_rng(seed)
    entropy_BS = generator.uniform(0, 3, (documents, length)).astype(np.float32)
    eligible_BS = generator.random((documents, length)) < 0.7
    eligible_BS[:, :3] = False
    return entropy_BS, eligible_BS, generator.integers(0, 2**40, documents)


def choose(entropy_BS, eligible_BS, document_ids_B, **changes):
    return positions.choose_cuts(
        entropy_BS, eligible_BS, document_ids_B=document_ids_B, **{**OPTIONS, **changes}
    )


def test_eligible_cuts_equal_a_literal_reading():
    generator = np.random.default_rng(0)
    tokens_BS = generator.integers(0, 9, (5, 30))
    lengths_B = np.array([30, 20, 7, 1, 0])
    tokens_BS[np.arange(30) >= lengths_B[:, None]] = -1  # padding may be anything
    expressible_V = np.array([v != 4 for v in range(9)])
    eligible_BS = positions.eligible_cuts(tokens_BS, lengths_B, 3, 2, {0, 8, 99}, expressible_V)
    for row in range(5):
        for cut in range(30):
            allowed = cut < lengths_B[row] and cut - 3 >= 2
            allowed = allowed and tokens_BS[row, cut] not in (0, 8, 4)
            assert eligible_BS[row, cut] == allowed
    assert eligible_BS.any()


def test_the_first_trunk_position_is_never_a_cut():
    eligible_BS = positions.eligible_cuts(
        np.ones((1, 4), int), np.array([4]), 0, 0, [], np.ones(2, bool)
    )
    assert eligible_BS.tolist() == [[False, True, True, True]]


def test_tokens_outside_the_vocabulary_are_an_error():
    with pytest.raises(ValueError, match="token id 7 is outside the vocabulary of 5"):
        positions.eligible_cuts(np.array([[1, 7]]), np.array([2]), 0, 1, [], np.ones(5, bool))


@pytest.mark.parametrize("random_fraction", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("mode", ["entropy", "random"])
@pytest.mark.parametrize("cuts", [1, 4, 100])
def test_cuts_are_sorted_distinct_and_allowed(random_fraction, mode, cuts):
    entropy_BS, eligible_BS, ids_B = scene()
    eligible_BS[2] = False
    cut_BC, valid_BC = choose(
        entropy_BS,
        eligible_BS,
        ids_B,
        random_fraction=random_fraction,
        mode=mode,
        cuts_per_document=cuts,
    )
    assert (cut_BC.dtype, valid_BC.dtype) == (np.int32, bool)
    assert cut_BC.shape == valid_BC.shape == (6, cuts)
    assert (cut_BC >= 1).all()
    assert (cut_BC < 60).all()
    assert (np.diff(valid_BC.astype(int), axis=1) <= 0).all()  # valid ones first
    assert not valid_BC[2].any()
    assert valid_BC.any()
    for row in range(6):
        valid = cut_BC[row][valid_BC[row]]
        assert (np.diff(valid) > 0).all()
        assert eligible_BS[row, valid].all()
        if mode == "entropy" and random_fraction == 0:
            # Entry c belongs to the prediction of token c.
            assert (np.abs(entropy_BS[row, valid] - 1.5) <= 0.5).all()


def test_slots_are_left_empty_only_when_the_band_is_exhausted():
    entropy_BS, eligible_BS, ids_B = scene()
    cut_BC, valid_BC = choose(entropy_BS, eligible_BS, ids_B, cuts_per_document=40)
    in_band_BS = eligible_BS & (np.abs(entropy_BS - 1.5) <= 0.5)
    np.testing.assert_array_equal(valid_BC.sum(axis=1), in_band_BS.sum(axis=1))
    for row in range(6):
        np.testing.assert_array_equal(cut_BC[row][valid_BC[row]], np.flatnonzero(in_band_BS[row]))
        assert (cut_BC[row][~valid_BC[row]] == cut_BC[row][valid_BC[row]].max()).all()


def test_band_edges_belong_and_nan_does_not():
    entropy_BS = np.array([[1.5, 1.0, 2.0, np.nan, 2.0001, 0.9999]])
    eligible_BS = np.array([[False, True, True, True, True, True]])
    cut_BC, valid_BC = choose(entropy_BS, eligible_BS, [0])
    assert cut_BC[valid_BC].tolist() == [1, 2]
    cut_BC, valid_BC = choose(entropy_BS, eligible_BS, [0], high_nats=np.inf)
    assert cut_BC[valid_BC].tolist() == [1, 2, 4]


def test_cuts_do_not_depend_on_batch_order_or_neighbours_or_padding():
    entropy_BS, eligible_BS, ids_B = scene()
    cut_BC, valid_BC = choose(entropy_BS, eligible_BS, ids_B, random_fraction=0.3)
    order = np.array([4, 0, 5, 2, 1, 3])
    shuffled = choose(entropy_BS[order], eligible_BS[order], ids_B[order], random_fraction=0.3)
    np.testing.assert_array_equal(shuffled[0], cut_BC[order])
    np.testing.assert_array_equal(shuffled[1], valid_BC[order])
    padding = ((0, 0), (0, 20))
    padded = choose(
        np.pad(entropy_BS, padding, constant_values=1.5)[3:4],
        np.pad(eligible_BS, padding)[3:4],
        ids_B[3:4],
        random_fraction=0.3,
    )
    np.testing.assert_array_equal(padded[0][0], cut_BC[3])


def test_seed_step_round_and_document_each_change_the_draw():
    entropy_BS, eligible_BS, ids_B = scene(length=200)
    base = choose(entropy_BS, eligible_BS, ids_B)[0]
    np.testing.assert_array_equal(choose(entropy_BS, eligible_BS, ids_B)[0], base)
    for changes in ({"seed": 4}, {"step": 6}, {"round_index": 1}):
        assert (choose(entropy_BS, eligible_BS, ids_B, **changes)[0] != base).any(axis=1).all()
    assert (choose(entropy_BS, eligible_BS, ids_B + 1)[0] != base).any(axis=1).all()
    # Swapping the roles of seed and step must not give the same stream.
    swapped = choose(entropy_BS, eligible_BS, ids_B, seed=5, step=3)[0]
    assert (swapped != base).any()


def draws(mode: str, random_fraction: float, documents: int = 3000):
    """Counts of every cut over many documents that look alike: eligible 1..12, in band 1..4."""
    entropy_BS = np.tile(np.where(np.arange(13) <= 4, 1.5, 0.0), (documents, 1))
    eligible_BS = np.tile(np.arange(13) >= 1, (documents, 1))
    cut_BC, valid_BC = choose(
        entropy_BS,
        eligible_BS,
        np.arange(documents),
        mode=mode,
        random_fraction=random_fraction,
        cuts_per_document=2,
    )
    assert valid_BC.all()
    return np.bincount(cut_BC.reshape(-1), minlength=13) / documents


def test_the_random_mode_is_uniform_over_eligible_cuts():
    np.testing.assert_allclose(draws("random", 0.0)[1:], 2 / 12, atol=0.035)


def test_the_band_is_drawn_uniformly():
    share = draws("entropy", 0.0)
    np.testing.assert_allclose(share[1:5], 2 / 4, atol=0.05)
    assert (share[5:] == 0).all()


def test_random_slots_have_the_asked_share():
    # Outside the band a cut comes only from random slots: 2 slots * fraction / 12 each.
    np.testing.assert_allclose(draws("entropy", 0.3)[5:], 2 * 0.3 / 12, atol=0.02)
    np.testing.assert_allclose(draws("entropy", 1.0)[1:], 2 / 12, atol=0.035)


def test_random_mode_needs_no_entropy():
    _, eligible_BS, ids_B = scene()
    assert choose(None, eligible_BS, ids_B, mode="random")[1].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "best"}, "mode"),
        ({"random_fraction": 1.5}, "random_fraction"),
        ({"low_nats": 3.0}, "band"),
        ({"entropy_BS": None}, "entropy_BS"),
        ({"entropy_BS": np.zeros((6, 59))}, "entropy_BS"),
        ({"eligible_BS": np.ones((6, 60), bool)}, "position 0"),
        ({"document_ids_B": np.arange(5)}, "document ids"),
    ],
)
def test_bad_input(changes, message):
    entropy_BS, eligible_BS, ids_B = scene()
    inputs = {"entropy_BS": entropy_BS, "eligible_BS": eligible_BS, "document_ids_B": ids_B}
    with pytest.raises(ValueError, match=message):
        choose(**{**inputs, **changes})
