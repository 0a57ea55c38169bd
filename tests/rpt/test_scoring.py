"""Probabilities after thoughts are those of rows of their own."""

import numpy as np

from rpt import scoring


def test_the_probability_after_a_thought_is_that_of_a_separate_row(tiny_model, tiny_params):
    B, S, C, G, T = 3, 10, 2, 2, 6
    rng = np.random.default_rng(1)
    tokens_BS = rng.integers(40, size=(B, S), dtype=np.int32)
    ones_BS, places_BS = np.ones_like(tokens_BS), np.tile(np.arange(S, dtype=np.int32), (B, 1))
    _, kv = scoring.score_trunk(tiny_model, tiny_params, tokens_BS, ones_BS, places_BS)
    shown = 2  # the first documents only
    branch_BCGT = rng.integers(40, size=(shown, C, G, T), dtype=np.int32)
    cut_BC = np.array([[4, 9], [1, 6]], np.int32)
    start_BCG = rng.integers(1, T + 1, size=(shown, C, G)).astype(np.int32)
    start_BCG[0, 0, 0] = -1  # no answer was begun: no error either
    target_BC = np.take_along_axis(tokens_BS[:shown], cut_BC, axis=1)
    found_BCG = np.asarray(
        scoring.probs_after_thoughts(
            tiny_model, tiny_params, kv, branch_BCGT, cut_BC, start_BCG, target_BC
        )
    )
    # Each as a row: the document up to the cut, the branch up to the answer, the target.
    rows_MS = np.zeros((shown * C * G, S + T), np.int32)
    length_M = []
    for m, (b, c, g) in enumerate(np.ndindex(shown, C, G)):
        start = max(start_BCG[b, c, g], 1)
        row = [*tokens_BS[b, : cut_BC[b, c]], *branch_BCGT[b, c, g, :start], target_BC[b, c]]
        rows_MS[m, : len(row)] = row
        length_M.append(len(row))
    segments_MS = (np.arange(S + T) < np.array(length_M)[:, None]).astype(np.int32)
    places_MS = np.arange(S + T, dtype=np.int32) * segments_MS
    scores, _ = scoring.score_trunk(tiny_model, tiny_params, rows_MS, segments_MS, places_MS)
    wanted_M = np.exp(np.asarray(scores.target_log_prob_BS))[
        np.arange(len(rows_MS)), np.array(length_M) - 1
    ]
    answered = start_BCG >= 1
    np.testing.assert_allclose(
        found_BCG[answered], wanted_M.reshape(found_BCG.shape)[answered], rtol=1e-4
    )
