"""Pieces, and what is made of them alone: claims, tables over seeds, what counts as shown."""

import copy
import dataclasses
import json
import re

import numpy as np
import pytest

from rpt import (
    evaluation,
    evaluation_records,
    experiment_claims,
    experiment_lines,
    experiment_pieces,
    experiment_pooled,
    experiment_preregistration,
    experiment_report,
    experiment_results,
    experiment_tables,
    statistics,
)
from tests.rpt import fixture_pieces
from tests.rpt.fixture_pieces import claim, piece, plan

THOUGHTS = {"base": 0.3, "ntp": 0.3, "rpt": 0.5, "rpt_rlvr": 0.7}


def pieces(seeds=(0, 1), arms=tuple(THOUGHTS), tables=True, **changes):
    """`changes` are arguments of `piece` by arm."""
    made = plan()
    return [
        piece(made, arm, seed, tables=tables, **(
            {"thought": THOUGHTS[arm] + 0.2 * seed} | changes.get(arm, {})
        ))
        for seed in seeds
        for arm in arms
    ]  # fmt: skip


# ---- pieces --------------------------------------------------------------------------------------


def test_a_piece_keeps_every_answer_that_was_thought_about():
    rng = np.random.default_rng(0)
    given = fixture_pieces.measured(0.5, 0.1)
    thought_P = rng.random(len(given.cut_P)) < 0.7
    given = dataclasses.replace(
        given,
        thought_P=thought_P,
        argmax_reward_PG=(rng.random((240, 3)) < 0.5) * thought_P[:, None] * 1.0,
        sampled_reward_PG=(rng.random((240, 3)) < 0.5) * thought_P[:, None] * 1.0,
        raw_reward_P=(rng.random(240) < 0.5) * 1.0,
    )
    found = experiment_pieces.unpack(json.loads(json.dumps(experiment_pieces.pack(given))))
    for field in dataclasses.fields(evaluation.Measured):
        value, expected = getattr(found, field.name), getattr(given, field.name)
        if field.name == "bins":
            assert all(np.array_equal(value[n], bin_P[thought_P]) for n, bin_P in expected.items())
        elif field.name == "gate_entropy_P":
            np.testing.assert_allclose(value, expected[thought_P], atol=5e-7)
        elif field.name == "ablations":
            assert not value  # the tables have them
        elif "prob" in field.name or field.name in ("diagnosis_PG", "over_budget_PG"):
            assert np.isnan(value).all()
        elif "tokens" not in field.name:
            assert np.array_equal(value, expected[thought_P]), field.name


def random_answers(rng):
    given = fixture_pieces.measured(0.5, 0.1)
    rewards = {
        name: (rng.random(getattr(given, name).shape) < 0.5) * 1.0
        for name in ("argmax_reward_PG", "sampled_reward_PG", "raw_reward_P", "header_reward_P")
    }
    return dataclasses.replace(given, **rewards)


def packed(given):
    about = {"positions_sha256": "the same", "split": "test"}
    content = json.loads(json.dumps(experiment_pieces.pack(given)))
    return evaluation_records.Recorded(about, experiment_pieces.unpack(content))


def test_arms_that_thought_at_different_positions_are_compared_where_both_did():
    """As on the full records: a piece keeps other positions of an arm without gated thinking."""
    rng = np.random.default_rng(3)
    a, b = random_answers(rng), random_answers(rng)
    hard_P, none_P = b.bins[">1.5"], np.zeros(len(b.cut_P), bool)
    lean = dataclasses.replace(b, bins={**b.bins, "gate": none_P}, thought_P=hard_P)
    full = [evaluation_records.Recorded(packed(a).about, one) for one in (a, b)]
    for part in ("stories", "all"):
        for modes in ({}, {"mode_b": "no_think"}, {"mode_a": "thought_sample"}):
            expected = evaluation_records.compare(*full, ">1.5", part=part, **modes)
            found = evaluation_records.compare(packed(a), packed(lean), ">1.5", part=part, **modes)
            assert found == expected
    for bin in ("gate", "all"):  # where one of them did not
        with pytest.raises(ValueError, match="empty, or not the same in both"):
            evaluation_records.compare(packed(a), packed(lean), bin)
    moved = dataclasses.replace(lean, cut_P=lean.cut_P + 1)
    with pytest.raises(ValueError, match="empty, or not the same in both"):
        evaluation_records.compare(packed(a), packed(moved), ">1.5")


def test_a_reward_that_is_no_bit_is_refused():
    given = fixture_pieces.measured(0.5, 0.1)
    given = dataclasses.replace(given, raw_reward_P=given.raw_reward_P + 0.5)
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        experiment_pieces.pack(given)


def write(folder, *made):
    for one in made:
        path = experiment_pieces.path(folder / f"seed{one.seed}", one.arm)
        experiment_pieces.save(path, one.content)


def test_the_report_is_made_of_a_folder_of_pieces(tmp_path):
    write(tmp_path / "there", *pieces(arms=("base", "rpt")))
    found = experiment_pieces.read_folder(tmp_path / "there")
    assert [(p.seed, p.arm) for p in found] == [(0, "base"), (0, "rpt"), (1, "base"), (1, "rpt")]
    results = experiment_report.make(found, tmp_path / "out", quiet=True)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    again = experiment_report.make(found[::-1], tmp_path / "again", quiet=True)
    assert json.dumps(again) == json.dumps(results)  # whatever the order of the files
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_pieces_that_do_not_belong_together_are_refused(tmp_path):
    one = piece(plan(), "base")
    write(tmp_path / "a", one)
    other = experiment_pieces.Piece({**one.content, "seed": 1, "plan": {"hypothesis": "None."}})
    write(tmp_path / "a", other)
    with pytest.raises(ValueError, match="different plans"):
        experiment_pieces.read_folder(tmp_path / "a")
    write(tmp_path / "b", one)
    experiment_pieces.save(tmp_path / "b" / "copy.json.gz", one.content)
    with pytest.raises(ValueError, match="same arm and seed"):
        experiment_pieces.read_folder(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no pieces"):
        experiment_pieces.read_folder(tmp_path / "c")
    (tmp_path / "d.json.gz").write_bytes(b"not zipped")
    with pytest.raises(ValueError, match=r"d\.json\.gz is no piece"):
        experiment_pieces.read(tmp_path / "d.json.gz")


# ---- claims --------------------------------------------------------------------------------------


def claimed(asked, made=None, hard=">1.5", **changes):
    """That claim of the pieces of seeds 0 and 1."""
    made = made or plan()
    given = pieces(arms=("base", "rpt"), tables=False, **changes)
    by_seed = {seed: {p.arm: p for p in given if p.seed == seed} for seed in (0, 1)}
    return experiment_claims.claim(made, asked, by_seed, hard)


def test_a_claim_is_the_paired_difference_of_each_seed_and_their_mean():
    found = claimed(claim("rpt", "thought_argmax", "base", "thought_argmax"))
    by_arm = {p.arm: p for p in pieces((1,), tables=False)}
    alone = evaluation_records.compare(
        by_arm["rpt"].recorded, by_arm["base"].recorded, ">1.5", part="stories"
    )
    assert found["seeds"]["1"]["difference"] == evaluation.as_json(alone)
    assert found["seeds"]["1"]["n"] == alone.n
    means = [one["difference"]["mean"] for one in found["seeds"].values()]
    assert found["pooled"]["difference"]["mean"] == pytest.approx(np.mean(means))
    assert found["pooled"]["shown"]
    assert found["pooled"]["seeds_shown"] == 2
    assert found["what"] == (
        "the rpt, with thought - the base, with thought; hard tokens (>1.5 nats) of stories"
    )


def test_gated_thinking_uses_the_arms_own_threshold():
    asked = claim("rpt", "gated", "rpt", "no_think", bin="gate")
    everywhere = claimed(asked, rpt={"threshold": -1.0})["pooled"]["difference"]["mean"]
    nowhere = claimed(asked, rpt={"threshold": 99.0})["pooled"]["difference"]["mean"]
    some = claimed(asked)["pooled"]["difference"]["mean"]
    assert nowhere == 0
    assert 0 < some < everywhere


@pytest.mark.parametrize(
    "changes",
    [
        {"base": {"passed": False}, "rpt": {"passed": False}},
        {"base": {"thought": 0.8}},
        {"base": {"thought": 0.5}, "rpt": {"thought": 0.5}},
    ],
)
def test_nothing_is_shown_below_the_gate_or_without_a_gain(changes):
    asked = claim("rpt", "thought_argmax", "base", "thought_argmax")
    found = claimed(asked, **changes)
    assert not found["pooled"]["shown"]
    assert found["pooled"]["seeds_shown"] == 0


def test_few_hard_positions_support_nothing():
    asked = claim("rpt", "thought_argmax", "base", "thought_argmax")
    assert not claimed(asked, plan(least_positions=1000))["pooled"]["shown"]
    # What is asked is a bin of the protocol's kind, and of others nothing is said beforehand.
    by_asked = dataclasses.replace(asked, bin="asked")
    found = claimed(by_asked, plan(least_positions=41))
    assert found["seeds"]["0"]["difference"]["low"] > 0
    assert not found["pooled"]["shown"]
    assert found["pooled"]["seeds_shown"] == 0
    assert claimed(by_asked, plan(least_positions=40))["pooled"]["shown"]
    by_label = dataclasses.replace(asked, bin="label:answer/2")
    assert claimed(by_label, plan(least_positions=1000))["pooled"]["shown"]


def test_a_claim_about_asked_tokens_is_about_all_labels_of_its_part_but_noise():
    asked = claim("rpt", "thought_argmax", "base", "thought_argmax", bin="asked")
    found = claimed(asked)
    one = {p.arm: p.recorded.measured for p in pieces((0,), ("base", "rpt"), tables=False)}
    labelled_P = one["rpt"].bins["label:answer/2"] | one["rpt"].bins["label:answer/10"]
    right = {arm: m.argmax_reward_PG[labelled_P].mean() for arm, m in one.items()}
    assert found["seeds"]["0"]["n"] == labelled_P.sum() == 40
    expected = right["rpt"] - right["base"]
    assert found["seeds"]["0"]["difference"]["mean"] == pytest.approx(expected)
    assert found["what"].endswith("; asked tokens of stories")
    # A part without labels asks for nothing.
    assert claimed(dataclasses.replace(asked, part="rlvr"))["pooled"] is None


def test_gated_thinking_is_only_shown_where_it_pays_at_enough_positions():
    """It pays: at least a tenth of the positions think, and the model gains over itself."""
    asked = claim("rpt", "gated", "base", "no_think", bin="gate")
    by_gate, hard = 54, 140  # positions of the stories
    assert claimed(asked, plan(least_positions=by_gate))["pooled"]["shown"]
    assert not claimed(asked, plan(least_positions=by_gate + 1))["pooled"]["shown"]
    few_hard = dataclasses.replace(asked, bin=">1.5")
    assert claimed(few_hard, plan(least_positions=hard))["pooled"]["shown"]
    assert not claimed(few_hard, plan(least_positions=hard + 1))["pooled"]["shown"]
    # The part's hard ones must be as many: here there are forty.
    assert not claimed(asked, plan(least_positions=by_gate), "label:answer/2")["pooled"]["shown"]
    no_gain = claimed(asked, plan(least_positions=by_gate), rpt={"gain_shown": False})
    assert no_gain["pooled"]["difference"]["low"] > 0
    assert not no_gain["pooled"]["shown"]
    # Of the other side nothing is asked.
    other = claimed(asked, plan(least_positions=by_gate), base={"gain_shown": False})
    assert other["pooled"]["shown"]


def test_only_what_all_seeds_of_the_plan_show_is_shown():
    asked = claim("rpt", "thought_argmax", "base", "thought_argmax")
    assert claimed(asked, plan(seeds=(0, 1)))["pooled"]["shown"]
    assert claimed(asked, plan(seeds=(0,)))["pooled"]["seeds"] == 2  # further ones are welcome
    found = claimed(asked, plan(seeds=(0, 1, 2)))["pooled"]
    assert found["seeds_shown"] == 2
    assert not found["shown"]
    planned = plan(seeds=(0, 1, 2))
    given = [piece(planned, arm, seed, tables=True) for arm in ("base", "rpt") for seed in (0, 1)]
    missing = experiment_results.results(given)["missing"]
    assert {"seed2/base", "seed2/rpt", "seed0/ntp"} <= set(missing)
    alone = experiment_results.results(given[:1], seeds=(0,))
    assert {name.partition("/")[0] for name in alone["missing"]} == {"seed0"}


# ---- the plan as it was --------------------------------------------------------------------------


def at(time, made):
    return {"time": time, "commit": f"commit of {time}", "plan": experiment_pieces.plan_json(made)}


def test_the_report_says_which_plan_test_was_read_under_and_what_has_changed(tmp_path):
    first = plan()
    given = [piece(first, arm, claimed=at("5", first), tables=True) for arm in ("base", "rpt")]
    given.append(piece(first, "ntp", claimed=at("7", plan(claims=())), tables=True))
    write(tmp_path, *given)
    told = experiment_results.results(given)
    assert (told["plan"]["time"], told["plan"]["changed"]) == ("5", [])
    assert "unchanged since" in "\n".join(experiment_report.markdown(told))
    root = tmp_path / "seed0"
    titles = plan(seeds=(0, 1), claims=first.claims[:1])  # no goal is left out
    more = claim("ntp", "no_think", "base", "no_think")
    for now in (titles, plan(claims=(*first.claims, more)), plan(claims=(*first.claims, more))):
        found = experiment_pieces.renewed(now, root, ("base", "rpt", "ntp"))
    assert [len(one.content["renewals"]) for one in found] == [2, 2, 2]
    told = experiment_results.results([experiment_pieces.read(p) for p in root.rglob("*.gz")])
    assert told["plan"]["changed"] == ["claim ntp_no_think_over_base_no_think"]
    assert told["plan"]["changed_time"] == found[0].content["renewals"][1]["time"]
    line = experiment_preregistration.words(told)
    assert line.startswith("plan of commit commit of 5, when test was first read (5); CHANGED at ")
    unknown = [*given, piece(first, "rpt_rlvr", tables=True)]
    line = experiment_preregistration.words(experiment_results.results(unknown))
    assert "has not been recorded" in line


def test_what_is_claimed_otherwise_is_named():
    made = plan()
    others = plan(
        hypothesis="Thinking is free.",
        least_positions=10,
        claims=(made.claims[1], dataclasses.replace(made.claims[2], bin="")),
    )
    before, now = experiment_pieces.plan_json(made), experiment_pieces.plan_json(others)
    assert experiment_preregistration.changes(before, before) == []
    assert experiment_preregistration.changes(before, now) == [
        "hypothesis",
        "least_positions",
        f"claim {made.claims[2].name}",
        f"without the goal {made.claims[0].name}",
    ]


def test_the_plan_of_the_first_reading_is_kept_unless_it_came_too_late(tmp_path):
    for number in (1, 2):
        experiment_preregistration.record(tmp_path, "test", {"number": number})
    found = experiment_preregistration.recorded(tmp_path, "test")
    assert found is not None
    assert found["plan"] == {"number": 1}
    (tmp_path / "evaluation" / "base" / "validation").mkdir(parents=True)
    (tmp_path / "evaluation" / "base" / "validation" / "results.json").write_text("{}")
    experiment_preregistration.record(tmp_path, "validation", {"number": 3})
    assert experiment_preregistration.recorded(tmp_path, "validation") is None


# ---- what is missing -----------------------------------------------------------------------------


def test_what_was_not_measured_is_said():
    asked = claim("rpt", "thought_argmax", "base", "no_think", bin="label:answer/99")
    assert claimed(asked)["pooled"] is None
    found = experiment_results.results(pieces(arms=("base", "rpt")))
    assert found["missing"] == [f"seed{s}/{arm}" for s in (0, 1) for arm in ("ntp", "rpt_rlvr")]
    assert found["claims"][2]["pooled"] is None
    assert experiment_lines.claim_lines(found, goals=False)[1].startswith("not measured: the rpt")
    assert "missing: seed1/ntp has not been evaluated" in experiment_lines.notes(found)


# ---- tables --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    return experiment_results.results(pieces())


def table(found, title):
    (chosen,) = (t for t in experiment_tables.tables(found) if t.title.startswith(title))
    assert len({len(row) for row in (chosen.heads, *chosen.rows)}) == 1
    names = [head.name for head in chosen.heads[1:]]
    return {row[0].text: dict(zip(names, row[1:])) for row in chosen.rows}


def test_a_cell_is_the_mean_over_seeds_its_interval_and_each_seed(found):
    row = table(found, "Next-token accuracy: test, stories")["the rpt"]
    parts = [entry["parts"]["stories"] for entry in found["arms"]["rpt"]["seeds"].values()]
    first, second = (part["bins"][">1.5"]["thought_argmax"] for part in parts)
    measured = [p.recorded.measured for p in pieces() if p.arm == "rpt"]
    masks = [m.bins[">1.5"] & m.in_part("stories") for m in measured]
    over_both = statistics.pooled_estimate(
        [(m.argmax_reward_PG[k].mean(1), m.document_P[k]) for m, k in zip(measured, masks)], seed=0
    )
    cell = row["hard >1.5 nats, thought"]
    assert over_both.low < over_both.mean < over_both.high
    assert cell.text == f"{over_both.mean:.3f} [{over_both.low:.3f}, {over_both.high:.3f}]"
    assert cell.each == f"{first['mean']:.2f}, {second['mean']:.2f}"
    bins = [f"{name}, no thought" for name in ("easy >0.5 nats", "medium >1.0 nats", "all")]
    assert all("[" in row[name].text for name in bins)
    alone = table(experiment_results.results(pieces((0,))), "Next-token accuracy")["the rpt"]
    ends = f"[{first['low']:.3f}, {first['high']:.3f}]"
    assert alone["hard >1.5 nats, thought"] == (f"{first['mean']:.3f} {ends}", "")


def test_the_table_of_rlvr_has_each_arm_before_and_after(found):
    assert found["rlvr"] == [["rpt", "rpt_rlvr"]]  # not rpt, which reads what its base has read
    rows = table(found, "RLVR")
    assert list(rows) == ["the rpt_rlvr"]
    row = rows["the rpt_rlvr"]
    assert row["before, thought"].text.startswith("0.6")
    assert row["after, thought"].text.startswith("0.8")
    assert all("[" in cell.text for name, cell in row.items() if name != "TFLOP")
    assert row["TFLOP"].text == "3.00"


def test_an_arm_after_rlvr_is_known_by_what_it_was_trained_on_and_not_by_its_name():
    control = fixture_pieces.arm("control", "train", init="base")
    again = fixture_pieces.arm("again", "train", init="base")
    pretrained = fixture_pieces.arm("pretrained", init="base")
    made = plan(arms=(*fixture_pieces.ARMS, control, again, pretrained))
    read = {"again": "stories"}
    given = [
        piece(made, name, tables=True, read=read.get(name, "automata"))
        for name in ("base", "control", "again", "pretrained")
    ]
    assert experiment_results.results(given)["rlvr"] == [["base", "control"]]


def test_depths_stand_in_the_order_of_numbers_and_noise_is_no_depth(found):
    rows = table(found, "By depth of answer: test, stories")
    assert list(next(iter(rows.values()))) == ["2", "10"]
    assert not [t for t in experiment_tables.tables(found) if "depth of noise" in t.title]
    assert rows["n"]["2"] == ("30", "30, 30")
    assert [name for name in rows if "rlvr" in name] == [
        "the rpt_rlvr, no thought",
        "the rpt_rlvr, thought",
    ]
    assert re.fullmatch(r"0\.\d\d \[0\.\d\d, \d\.\d\d\]", rows["the rpt, thought"]["2"].text)


@pytest.mark.parametrize(("shown", "groups"), [(2, ("<=2", ">2")), (10, ("<=10",)), (1, (">1",))])
def test_depths_are_summed_up_to_what_stage_0_shows_and_above(shown, groups):
    given = [piece(plan(shown_depth=shown), "rpt", seed, tables=True) for seed in (0, 1)]
    found = experiment_results.results(given)
    rows = table(found, "By depth of answer: test, stories")
    named = [name for name in rows["n"] if name[0] in "<>" and rows["n"][name].text != "-"]
    assert named == [*groups]
    measured = given[0].recorded.measured
    for name in groups:
        depths = {"<": lambda d: d <= shown, ">": lambda d: d > shown}[name[0]]
        labels = [d for d in (2, 10) if depths(d)]
        mask_P = np.logical_or.reduce([measured.bins[f"label:answer/{d}"] for d in labels])
        assert rows["n"][name].each == f"{mask_P.sum()}, {mask_P.sum()}"
        alone = statistics.mean_estimate(
            measured.argmax_reward_PG[mask_P].mean(1), measured.document_P[mask_P], seed=0
        )
        cell = rows["the rpt, thought"][name]
        assert cell.text.startswith(f"{alone.mean:.2f} [")
        assert cell.each == f"{alone.mean:.2f}, {alone.mean:.2f}"


def test_the_hard_bin_is_taken_apart_by_kind_of_label_without_loss():
    measured = fixture_pieces.measured(0.5, 0.1)
    kinds = experiment_results.hard_by_kind(measured, "stories", ">1.5")
    inside_P = measured.bins[">1.5"] & measured.in_part("stories")
    assert set(kinds) == {"answer", "noise", "unlabelled"}
    assert sum(kind["n"] for kind in kinds.values()) == inside_P.sum()
    right = sum(kind["n"] * kind["thought_argmax"] for kind in kinds.values())
    assert right == pytest.approx(measured.argmax_reward_PG[inside_P, 0].sum())


def test_what_a_part_asks_for_are_its_labels_but_noise_or_all_of_it():
    measured = fixture_pieces.measured(0.5, 0.1)
    assert np.flatnonzero(experiment_pooled.asked(measured, "stories")).tolist() == [*range(40)]
    in_rlvr_P = measured.in_part("rlvr")
    assert np.array_equal(experiment_pooled.asked(measured, "rlvr"), in_rlvr_P)


def test_compute_counts_all_that_an_arm_continues(found):
    compute = found["arms"]["rpt_rlvr"]["seeds"]["0"]["compute"]
    assert compute["flops_executed"] == 3 * 10**12
    assert compute["flops_executed_after_stage0"] == 2 * 10**12
    assert compute["flops_executed_alone"] == 10**12
    assert compute["wall_seconds"] == 180
    row = table(found, "Training compute")["the rpt_rlvr"]
    assert row["most epochs"].text == "1.00"  # base and rpt read the stories, rpt_rlvr others


def test_a_scaling_curve_has_its_points_by_seed_with_and_without_stage_0(found):
    points = found["scaling"]["by reward"]
    assert [(p["arm"], p["seed"], p["flops"], p["flops_after_stage0"]) for p in points] == [
        ("rpt", 0, 2 * 10**12, 10**12),
        ("rpt", 1, 2 * 10**12, 10**12),
    ]
    documents = points[1]["documents"]
    mean = sum(documents["thought_argmax"]) / sum(documents["n"])
    assert points[1]["value"]["thought_argmax"]["mean"] == pytest.approx(mean)


def test_altered_thoughts_have_a_table_where_they_were_measured(found):
    assert not [t for t in experiment_tables.tables(found) if t.title.startswith("Altered")]
    found = copy.deepcopy(found)
    row = found["arms"]["rpt"]["seeds"]["0"]["parts"]["stories"]["bins"][">1.5"]
    row["ablations"] = {"drop": {"accuracy": {"mean": 0.125, "low": 0.1, "high": 0.2}}}
    rows = table(found, "Altered thoughts")
    assert rows["the rpt"]["drop"] == ("0.125 [0.100, 0.200]", "0.12")
    assert rows["the base"]["drop"].text == "-"
    assert (
        rows["the rpt"]["true thought"]
        == table(found, "Next-token")["the rpt"]["hard >1.5 nats, thought"]
    )


def test_the_report_states_goals_first_and_that_seeds_are_few(found):
    text = "\n".join(experiment_report.markdown(found))
    assert text.index("## Goals") < text.index("## Other claims") < text.index("## Next-token")
    assert "2 seeds are few" in text
    assert all(c["what"] in text for c in found["claims"])
    assert experiment_tables.READING in text
    # One budget is no curve, and that is said too.
    assert "## Scaling points" in text
    fits = text.partition("## Scaling fits")[2].splitlines()
    assert fits[4].startswith("| by reward | hard tokens, without a thought | after stage 0 | - |")
    assert [fit["forms"] for fit in found["scaling_fits"]] == [{}] * 4
    goals = experiment_lines.claim_lines(found, goals=True)
    assert len(goals) == 1
    assert "shown in 2 of 2 seeds" in goals[0]


def test_a_leak_is_said_and_noise_has_its_table(found):
    leaks = [line for line in experiment_lines.notes(found) if line.startswith("LEAK: the rpt ")]
    assert len(leaks) == 1  # half of the noise and more is right with thought
    assert leaks[0].endswith("in seed 0, 1")
    row = table(found, "Noise")["the rpt"]
    assert row["no think raw"] == ("0.0", "0.0, 0.0")
    assert float(row["thought argmax"].text) > 3
