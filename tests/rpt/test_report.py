"""The report: what was measured is in it, nothing in it can run, and what is missing is said."""

import base64
import hashlib
import html
import html.parser
import json
import re
import shutil

import numpy as np
import pytest

from data import commands
from rpt import (
    experiment_tables,
    report,
    report_charts,
    report_data,
    report_html,
    report_reader,
    report_svg,
)
from tests.rpt import report_fixture


class Page(html.parser.HTMLParser):
    """The tags of a page, with what each holds as text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.open = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open == "script":
            self.scripts += data
        elif self.open != "style":
            self.text += data

    def having(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def made(root) -> str:
    """The page alone: no plots, no scaling."""
    return report_html.page(report_data.gather(root), [])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "mini"
    report_fixture.experiment(root)
    return root


@pytest.fixture
def copied(experiment, tmp_path):
    shutil.copytree(experiment, tmp_path / "mini")
    return tmp_path / "mini"


# ---- what is in the page -------------------------------------------------------------------------


def test_claims_stand_with_their_verdicts_and_intervals(experiment):
    page = made(experiment)
    claims = re.findall(r'<li class="claim (\w+)">(.*?)</li>', page, re.DOTALL)
    assert [kind for kind, _ in claims] == ["shown", "open", "against", "uncounted"]
    assert "+0.050</b> [+0.030, +0.070]" in claims[0][1]
    assert "\u22120.080</b> [\u22120.100, \u22120.060]" in claims[2][1]
    assert re.findall("<b>(. of .)</b> are shown", page) == ["1 of 2", "0 of 2"]  # goals, others
    for caveat in ("missing: seed9/rpt", "gate of base, seed 0, passed", "LEAK: continued NTP"):
        assert caveat in Page(page).text


def test_an_interval_is_drawn_where_it_lies(experiment):
    """Bar and dot of the first claim, against the scale that the section states."""
    page = made(experiment)
    (scale,) = set(re.findall(r'axis-note"><span>(.*?)</span>.*?<span>([+].*?)</span>', page))
    low, high = (float(end.replace("\u2212", "-")) for end in scale)
    left, width = re.findall(r'class="bar" style="left:(.*?)%;width:(.*?)%"', page)[0]
    at = low + float(left) / 100 * (high - low)
    assert at == pytest.approx(0.03, abs=0.005)
    assert float(width) / 100 * (high - low) == pytest.approx(0.04, abs=0.005)


def test_all_arms_and_sections_are_there(experiment):
    page = made(experiment)
    sections = re.findall(r'<section class="part" id="(\w+)">', page)
    first, last = ["claims", "arms", "tables"], ["compute", "alarms", "origin"]
    assert sections == [*first, "training", "thoughts", *last]
    assert [link["href"] for link in Page(page).having("a")] == [f"#{name}" for name in sections]
    for text in ("base", "RPT + trunk NTP", "Mixed SFT", "48.0%", "12 min 34 s", "no gradient"):
        assert text in page
    assert "reference" not in Page(page).text.replace("frozen reference", "").lower()


def test_the_tables_of_the_report_stand_on_the_page(tmp_path):
    report_fixture.seeds(tmp_path / "mini", 2)
    page = made(tmp_path / "mini")
    tables = experiment_tables.tables(report_fixture.results((0, 1)))
    assert [t.title.partition(":")[0] for t in tables][:3] == [
        "Next-token accuracy",
        "RLVR, asked tokens",
        "Gated thinking on all tokens",
    ]
    assert len({table.title for table in tables}) == len(tables) > 8
    for table in tables:
        rows = re.findall(r"<tr>(.*?)</tr>", table_of(page, table.title))[1:]
        assert len(rows) == len(table.rows)
        for row, html_row in zip(table.rows, rows):
            seen = re.sub(r"</t[hd]>", "|", html_row.replace("<small>", " "))
            cells = [f"{text} {each}".strip() for text, each in row]
            assert html.unescape(re.sub("<[^>]*>", "", seen)) == "|".join([*cells, ""])
    assert "0.540 [0.528, 0.552]<small>0.54, 0.54</small>" in table_of(page, tables[0].title)
    # Without several experiments there is no name before a title.
    assert "<h3>Next-token accuracy: test, stories</h3>" in page


def table_of(page: str, label: str) -> str:
    name = re.escape(html.escape(label))
    (found,) = re.findall(f'aria-label="{name}">(.*?)</table>', page)
    return found


def test_what_columns_mean_is_said_in_the_open_and_every_table_and_row_has_its_name(tmp_path):
    report_fixture.seeds(tmp_path / "mini", 2)
    text = made(tmp_path / "mini")
    page = Page(text)
    assert "hard, sampled: the answer after it sampled" in page.text
    assert not [th for th in page.having("th") if "title" in th]
    regions = [tag["aria-label"] for tag in page.having("div") if tag.get("role") == "region"]
    assert len(regions) > 12
    assert "table" not in regions
    assert len(set(regions)) == len(regions)
    (pairs,) = re.findall(r'<div class="pairs">(.*?)</p></div>', text)
    names = re.findall(r'<span class="arm">(.*?)</span>(?:</span>)?<span class="seed">', pairs)
    shown = ["base", "RPT + trunk NTP", "continued NTP", "mixed_sft"]
    hidden = '<span class="unseen">'
    assert [name.removeprefix(hidden) for name in names] == [n for n in shown for _ in range(2)]
    assert [name.startswith(hidden) for name in names] == [False, True] * 4


def test_a_chart_says_in_words_what_it_shows():
    line = report_charts.Line("RPT & NTP", 1, np.array([1.0, 2.0]), np.array([0.25, np.nan]))
    marks = report_charts.Line("", 1, line.x, line.y, marks=True)
    chart = report_charts.Chart("Accuracy", "c", "step", "share", [line, marks], kind="share")
    words = "Accuracy: share over step; RPT & NTP ends at 25%"
    assert report_svg.summary(chart) == words
    assert f'aria-label="{html.escape(words)}"' in report_svg.render(chart)


def test_seeds_stand_beside_each_other_and_their_mean_below(tmp_path):
    report_fixture.seeds(tmp_path / "mini", 2)
    found = report_data.gather(tmp_path / "mini")
    assert [e.label for e in found.experiments] == ["seed 0", "seed 1"]
    assert all(list(e.runs) == list(report_fixture.ARMS) for e in found.experiments)
    page = report_html.page(found, [])
    (first, *_) = re.findall(r'<div class="tracks">(.*?)</li>', page, re.DOTALL)
    assert re.findall(r'<span class="seed">(.*?)</span>', first) == ["seed 0", "seed 1", "mean"]
    assert "[+0.035, +0.065]" in first
    assert "shown, 2 of 2 seeds" in page


def test_experiments_in_a_folder_stand_beside_each_other(tmp_path):
    for seed in range(2):
        report_fixture.experiment(tmp_path / f"s{seed}", seed)
    page = made(tmp_path)
    (first, *_) = re.findall(r'<div class="tracks">(.*?)</li>', page, re.DOTALL)
    assert re.findall(r'<span class="seed">(.*?)</span>', first) == ["seed 0", "seed 1"]
    assert "shown, 2 of 2 seeds" in page


def test_results_without_runs_are_shown(tmp_path):
    report_fixture.write(tmp_path / "results.json", report_fixture.results((0, 1)))
    found = report_data.gather(tmp_path)
    assert [e.label for e in found.experiments] == ["seed 0", "seed 1"]
    page = report_html.page(found, [])
    assert page.count('<li class="claim') == 4
    assert "Nothing here: no run has logged a step yet" in page


def test_a_run_alone_has_a_report(tmp_path):
    report_fixture.run(tmp_path / "alone", 0, rl=True)
    page = made(tmp_path / "alone")
    sections = re.findall(r'<section class="part" id="(\w+)">', page)
    assert sections == ["training", "thoughts", "compute", "alarms", "origin"]
    assert "Nothing here" not in page


def test_thoughts_are_read_at_their_cuts(experiment):
    page = Page(made(experiment))
    cuts = [tag for tag in page.having("button") if tag["class"] == "cut"]
    assert len(cuts) == 6
    groups = {tag.get("id") for tag in page.having("section")}
    assert {cut["data-group"] for cut in cuts} <= groups
    # The text is whole, with the targets in their places.
    assert report_fixture.STORY in page.text
    pressed = [cut for cut in cuts if cut["aria-pressed"] == "true"]
    assert len(pressed) == 3  # one a document
    meters = [t["title"] for t in page.having("span") if t.get("class") == "meter"]
    assert len(meters) == 6 * 7  # one thought in eight came to no answer
    assert all(re.fullmatch(r"\d\.\d{3} after the thought, 0\.230 before", m) for m in meters)


def test_cuts_without_a_place_are_not_lost():
    sample = report_fixture.sample(1, report_fixture.STORY, np.random.default_rng(0))
    del sample["cuts"][0]["offset"]
    sample["cuts"][1]["offset"] = 3  # another text stands there
    page = report_reader._document("doc0", "name", sample)
    assert page.count('class="cut"') == 2
    assert "Elsewhere" in page


@pytest.mark.parametrize("count", [0, 1, 5, 24, 25, 1000])
def test_samples_are_chosen_evenly(count):
    chosen = report_reader.evenly(range(count), 24)
    assert len(chosen) == min(count, 24)
    assert chosen == sorted(set(chosen))
    if count:
        assert (chosen[0], chosen[-1]) == (0, count - 1)


# ---- nothing in it can run, nothing is loaded ----------------------------------------------------


def test_all_text_is_escaped(experiment):
    page = Page(made(experiment))
    assert page.having("img") == []
    assert len(page.having("script")) == 1
    assert "owned" not in page.scripts
    # As text it is there: in the hypothesis, in thoughts and in answers.
    assert page.text.count(report_fixture.HOSTILE) >= 1 + 2 * 6
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]


def test_the_page_needs_nothing_else(experiment):
    text = made(experiment)
    page = Page(text)
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"@import|url\(", text)
    assert not page.having("link")
    assert all(link["href"].startswith("#") for link in page.having("a"))


def test_the_policy_allows_this_very_script_alone(experiment):
    page = Page(made(experiment))
    (policy,) = [
        t["content"] for t in page.having("meta") if "content" in t and "src" in t["content"]
    ]
    digest = base64.b64encode(hashlib.sha256(page.scripts.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


# ---- missing pieces ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("results.json", "results.json: not there yet"),
        ("rpt/samples.jsonl", "rpt/samples.jsonl: not there, so no thoughts to read"),
        ("rpt/summary.json", "rpt/summary.json: not there; the run has not ended yet"),
        ("rpt/metrics.jsonl", None),
        ("rpt/run.json", None),
        ("rpt", "rpt: its run directory is not there"),
    ],
)
def test_what_is_missing_is_said(copied, missing, said):
    path = copied / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = Page(made(copied)).text
    assert said is None or said in text
    assert "Mixed SFT" in text


def test_damaged_files_are_said_and_half_a_last_line_is_not(copied):
    with (copied / "rpt" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "rew')
    assert not report_data.gather(copied).missing
    (copied / "results.json").write_text("{")
    lines = (copied / "ntp" / "metrics.jsonl").read_text().splitlines()
    (copied / "ntp" / "metrics.jsonl").write_text("\n".join([*lines[:3], "{", *lines[3:]]))
    missing = "\n".join(report_data.gather(copied).missing)
    for said in ("mini/results.json: damaged", "ntp/metrics.jsonl, line 4"):
        assert said in missing
    made(copied)


def test_a_results_file_that_lacks_something_spoils_its_own_section_only(copied):
    results = json.loads((copied / "results.json").read_text())
    del results["arms"]["ntp"]["seeds"]["0"]["parts"]["stories"]["bins"][">1.5"]["answer_rate"]
    (copied / "results.json").write_text(json.dumps(results))
    page = made(copied)
    lacks = "Cannot be shown: a file lacks what this version expects (KeyError(&#x27;answer_rate"
    assert lacks in page
    assert '<ol class="claims">' in page


def test_results_of_another_version_are_left_out_and_named(copied):
    (copied / "results.json").write_text('{"claims": [], "arms": {}}')
    found = report_data.gather(copied)
    assert any("results.json: of another version" in note for note in found.missing)
    assert report_html.page(found, []).count('<section class="part"') == 5


def test_a_stopped_run_says_so(copied):
    path = copied / "ntp" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False, "step": 12}))
    assert any("stopped at step 12" in note for note in report_data.gather(copied).missing)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one directory"),
        (["--help"], "give one directory"),
        (["nowhere"], "directory not found: "),
        (["empty"], "holds neither an experiment nor a run"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", *words])
    with pytest.raises(SystemExit) as ended:
        commands.run(report.main)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


# ---- charts --------------------------------------------------------------------------------------


def test_everything_of_a_chart_lies_within_it():
    rng = np.random.default_rng(0)
    for log_x in (False, True):
        x = np.geomspace(0.1, 3e4, 30)
        lines = [
            report_charts.Line(f"name {i}", i, x, rng.normal(50 * i, 9, 30), dashed=i == 2)
            for i in range(5)
        ]
        lines.append(report_charts.Line("", 0, x[:3], np.array([1.0, np.nan, 3.0]), marks=True))
        chart = report_charts.Chart("t", "c", "x", "y", lines, log_x=log_x, zero=True)
        drawn = report_svg.render(chart)
        assert "nan" not in drawn
        points = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", drawn)
        assert len(points) > 150
        assert all(0 <= float(a) <= report_svg.WIDTH for a, _ in points)
        assert all(0 <= float(b) <= report_svg.HEIGHT for _, b in points)
        ends = [float(y) for y in re.findall(r'class="name t\d" x="[\d.]+" y="([\d.]+)"', drawn)]
        assert len(ends) == 5
        assert np.diff(sorted(ends)).min() > 12


def test_ticks_are_round_and_inside():
    scale = report_svg._Scale.over(np.array([0.137, 0.861]), 0, 100, False)
    assert scale.ticks(5) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    logarithmic = report_svg._Scale.over(np.array([3e12, 2e14]), 0, 100, True)
    assert (
        logarithmic.ticks(5) == pytest.approx([1e13, 3e13, 1e14], rel=1e-9)
        or len(logarithmic.ticks(5)) <= 5
    )
    assert float(scale(0.137)) == pytest.approx(0)
    assert float(logarithmic(2e14)) == pytest.approx(100)


def test_a_line_is_drawn_at_its_values():
    line = report_charts.Line("", 1, np.array([0.0, 1.0, 2.0]), np.array([0.0, 10.0, 5.0]))
    drawn = report_svg.render(report_charts.Chart("t", "c", "x", "y", [line]))
    (path,) = re.findall(r'class="line t1" d="(.*?)"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = (
        (float(a), float(b)) for a, b in re.findall(r"([\d.]+) ([\d.]+)", path)
    )
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 > y2 > y1  # pixels go down
    assert y0 - y2 == pytest.approx(y2 - y1, abs=0.11)


# ---- files ---------------------------------------------------------------------------------------


def test_page_and_plots_are_written_with_scaling_curves(tmp_path):
    root = tmp_path / "mini"
    report_fixture.seeds(root, 2, scaling=True)
    path = report.write(root, resamples=4)
    text = path.read_text()
    assert path == root / "report.html"
    assert 'id="scaling"' in text
    assert text.count('class="band') == 4  # with a thought and without; with stage 0 and without
    for form in ("power", "log-linear", "sigmoid"):
        assert text.count(f"<td>{form}</td>") == 4
    assert "2 seeds: intervals over so few are too narrow" in Page(text).text
    plots = sorted(p.name for p in (root / "plots").iterdir())
    assert plots == ["depths.png", "gates.png", "scaling.png", "training.png"]
    assert all((root / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in plots)
