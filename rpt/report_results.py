"""Claims, arms and scaling as HTML: what was found, each with its interval drawn."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from rpt import (
    experiment_cells,
    experiment_preregistration,
    experiment_scaling_tables,
    report_charts,
    report_data,
    report_svg,
    scaling_points,
    scaling_studies,
)

_MODES = (("no_think", "without a thought", "hollow"), ("thought_argmax", "with a thought", "full"))
text = html.escape
_LONG = 60  # characters of a cell, more than any figure has with its interval


# ---- claims --------------------------------------------------------------------------------------


def claims(report: report_data.Report) -> str:
    """What was claimed beforehand, then every comparison with its interval, per seed."""
    labelled = report.with_results
    rows = _by_name(labelled)
    ends = [
        end
        for found in rows.values()
        for _, claim in found
        for end in claim["difference"].values()
        if end is not None
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.04 * (high - low or 1.0)
    scale = (low - margin, high + margin)
    parts = [
        f'<blockquote class="hypothesis"><p>{text(labelled[0][1]["hypothesis"])}</p>'
        f"<footer>{text(experiment_preregistration.words(labelled[0][1]))}</footer></blockquote>",
    ]
    for title, goal in (("Goals", True), ("Other claims", False)):
        of_kind = {n: found for n, found in rows.items() if found[0][1]["goal"] == goal}
        if of_kind:
            parts.append(_claims(title, of_kind, report.pooled, scale))
    notes = "".join(f"<li>{text(note)}</li>" for note in report.caveats)
    return "".join([*parts, f'<ul class="quiet">{notes}</ul>' if notes else ""])


def _claims(
    title: str,
    rows: Mapping[str, Sequence[tuple[str, Mapping]]],
    pooled: Mapping[str, Mapping],
    scale: tuple[float, float],
) -> str:
    """The goals, or the others: a sentence, the rows, and the scale they share."""
    items, shown = [], 0
    for name, found in rows.items():
        kind, words = _joint_verdict(found, pooled.get(name))
        shown += kind == "shown"
        items.append(_claim(found, pooled.get(name), scale, kind, words))
    low, high = (f"{end:+.2f}".replace("-", "\u2212") for end in scale)
    return (
        f'<h3 class="kinds">{title}</h3><p class="lead"><b>{shown} of {len(rows)}</b> are shown: '
        "the whole 95% interval lies above 0, there are enough positions, and every gate was "
        f'passed.</p><ol class="claims">{"".join(items)}</ol><p class="axis-note">'
        f"<span>{low}</span><span>0 is the line</span><span>{high}</span></p>"
    )


def _by_name(labelled: Sequence[tuple[str, Mapping]]) -> dict[str, list[tuple[str, Mapping]]]:
    rows: dict[str, list[tuple[str, Mapping]]] = {}
    for label, results in labelled:
        for claim in results["claims"]:
            rows.setdefault(claim["name"], []).append((label, claim))
    return rows


def _claim(
    found: Sequence[tuple[str, Mapping]],
    pooled: Mapping[str, Any] | None,
    scale: tuple[float, float],
    kind: str,
    words: str,
) -> str:
    several = len(found) > 1
    what, _, where = found[0][1]["what"].partition("; ")
    tracks = "".join(
        _track(claim["difference"], scale, verdict(claim), label if several else "")
        for label, claim in found
    )
    if several and pooled is not None:
        tracks += _track(pooled["difference"], scale, kind, "mean")
    counts = sorted({claim["n"] for _, claim in found})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return (
        f'<li class="claim {kind}"><div class="what"><span class="name">{text(_minus(what))}</span>'
        f'<span class="verdict">{words}</span> <span class="where">{text(where)}, '
        f'<span class="nowrap">n {n}</span></span></div>'
        f'<div class="tracks">{tracks}</div></li>'
    )


def _minus(what: str) -> str:
    """A difference with a real minus sign."""
    return what.replace(" - ", " \u2212 ")


def verdict(claim: Mapping[str, Any]) -> str:
    """'shown', 'against' (all of the interval below 0), 'uncounted' (above, but a rule was not met)
    or 'open'."""
    low, high = claim["difference"]["low"], claim["difference"]["high"]
    if claim["shown"]:
        return "shown"
    if high is not None and high < 0:
        return "against"
    return "uncounted" if low is not None and low > 0 else "open"


_VERDICTS = {
    "shown": "shown",
    "against": "the other way",
    "uncounted": "above 0, not counted",
    "open": "not shown",
}


def _joint_verdict(
    found: Sequence[tuple[str, Mapping]], pooled: Mapping[str, Any] | None
) -> tuple[str, str]:
    """The class that colours the row, and words: of the pooled difference, if there is one."""
    verdicts = [verdict(claim) for _, claim in found]
    if len(found) > 1 and pooled is not None:
        kind = verdict(pooled)
    else:
        kind = verdicts[0] if len(set(verdicts)) == 1 else "open"
    words = _VERDICTS[kind]
    if len(found) > 1:
        words += f", {verdicts.count('shown')} of {len(found)} seeds"
    return kind, words


def _track(value: Mapping[str, Any], scale: tuple[float, float], kind: str, label: str) -> str:
    """One interval on the common scale, its numbers beside it."""
    low, high = scale

    def place(x: float) -> str:
        return f"{100 * (x - low) / (high - low):.2f}%"

    bar = ""
    if value["low"] is not None and value["high"] is not None:
        width = 100 * (value["high"] - value["low"]) / (high - low)
        bar = f'<i class="bar" style="left:{place(value["low"])};width:{width:.2f}%"></i>'
    tag = f'<span class="seed">{text(label)}</span>' if label else ""
    return (
        f'<div class="row {kind}">{tag}<div class="track">'
        f'<i class="zero" style="left:{place(0.0)}"></i>{bar}'
        f'<i class="dot" style="left:{place(value["mean"])}"></i></div>'
        f'<span class="number">{signed(value)}</span></div>'
    )


def signed(value: Mapping[str, Any]) -> str:
    """+0.049 [+0.031, +0.068]."""
    ends = ["?" if value[end] is None else f"{value[end]:+.3f}" for end in ("low", "high")]
    return f"<b>{value['mean']:+.3f}</b> [{ends[0]}, {ends[1]}]".replace("-", "\u2212")


# ---- arms ----------------------------------------------------------------------------------------


def arms(report: report_data.Report) -> str:
    """Accuracy of every arm and seed without and with a thought, drawn and as a table."""
    labelled = report.with_results
    part, hard = labelled[0][1]["claim_part"], labelled[0][1]["bin"]
    rows = []
    for arm in report.arms:
        found = [
            (label, results["arms"][arm])
            for label, results in labelled
            if arm in results["arms"] and results["arms"][arm]["hard"] is not None
        ]
        for number, (label, entry) in enumerate(found):
            # Said of every row, and seen once: the rows of an arm stand together.
            name = text(entry["title"])
            name = f'<span class="unseen">{name}</span>' if number else name
            rows.append(_pair(name, label, entry["hard"], report.tones[arm], len(labelled) > 1))
    charts = [*report_charts.depths(report), *report_charts.gates(report)]
    return (
        f'<p class="lead">Accuracy at hard tokens of {text(part)} (more than '
        f"{text(hard.lstrip('>'))} nats under a frozen reference). "
        '<span class="key"><i class="mark hollow"></i> without a thought</span> '
        '<span class="key"><i class="mark full"></i> with one</span>, each with its 95% '
        "interval.</p>"
        f'<div class="pairs">{"".join(rows)}<p class="axis-note"><span>0%</span><span>50%</span>'
        "<span>100%</span></p></div>"
        f"{_table(labelled)}"
        f'<div class="charts">{_charts(charts)}</div>'
    )


def _pair(name: str, label: str, hard: Mapping[str, Any], tone: int, seeds: bool) -> str:
    """One row; the name is HTML."""
    marks = []
    for mode, words, kind in _MODES:
        value = hard[mode]
        if value["low"] is not None:
            low, width = 100 * value["low"], 100 * (value["high"] - value["low"])
            marks.append(f'<i class="bar {kind}" style="left:{low:.2f}%;width:{width:.2f}%"></i>')
        marks.append(
            f'<i class="mark {kind}" style="left:{100 * value["mean"]:.2f}%" '
            f'title="{words}: {_percent(value["mean"])}"></i>'
        )
    tag = f'<span class="seed">{text(label)}</span>' if seeds else ""
    means = " \u2192 ".join(_percent(hard[mode]["mean"]) for mode, _, _ in _MODES)
    return (
        f'<div class="row t{tone}"><span class="arm">{name}</span>{tag}'
        f'<div class="track">{"".join(marks)}</div><span class="number">{means}</span></div>'
    )


_COLUMNS = (
    ("arm", ""),
    ("seed", ""),
    ("hard, no thought", "argmax, the better of two contexts"),
    ("hard, thought", "the answer after it by argmax"),
    ("hard, sampled", "the answer after it sampled"),
    ("all, no thought", "on documents of which every position was thought at"),
    ("all, gated", "thinking only above the threshold chosen on validation"),
    ("think", "share of positions above it"),
    ("tokens", "mean length of a thought"),
    ("answers", "share of thoughts that come to one"),
)


def _table(labelled: Sequence[tuple[str, Mapping]]) -> str:
    rows = []
    for label, results in labelled:
        for entry in results["arms"].values():
            cells = [text(entry["title"]), text(label.removeprefix("seed "))]
            hard, gated = entry["hard"], entry["gated"]
            modes = ("no_think", "thought_argmax", "thought_sample")
            cells += [interval(hard[mode]) if hard else "" for mode in modes]
            if gated:
                reported = gated["reported"]
                cells += [interval(gated["no_think"]), _percent(reported["thought_argmax"])]
                cells.append(_percent(reported["share"]))
            else:
                cells += [""] * 3
            if hard:
                cells += [f"{hard['mean_thought_tokens']:.1f}", _percent(hard["answer_rate"])]
            rows.append(cells)
    return table("accuracy of every arm and seed", _COLUMNS, rows)


def interval(value: Mapping[str, Any]) -> str:
    """35.5 with its ends below, in percent."""
    if value["low"] is None:
        return f"{_percent(value['mean'])}"
    ends = f"{100 * value['low']:.1f} to {100 * value['high']:.1f}"
    return f"{_percent(value['mean'])}<small>{ends}</small>"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def table(label: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """Scrolls by itself where it is too wide; what columns mean is said below.

    Args:
      label: what it is a table of, for those who do not see where it stands.
      columns: (name, what it means; '' where the name says it).
      rows: cells, as HTML.
    """
    head = "".join(f'<th scope="col">{text(name)}</th>' for name, _ in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    meanings = "; ".join(f"<b>{text(name)}</b>: {text(what)}" for name, what in columns if what)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        + (f'<p class="meanings quiet">{meanings}.</p>' if meanings else "")
    )


def of_cells(made: experiment_cells.Table) -> str:
    """A table of report.md; each seed stands below the mean over them."""
    return table(made.title, made.heads, [[_cell(*cell) for cell in row] for row in made.rows])


def _cell(words: str, each: str) -> str:
    """Long ones are broken into lines."""
    whole = f'<span class="values">{text(words)}</span>' if len(words) > _LONG else text(words)
    return whole + (f"<small>{text(each)}</small>" if each else "")


# ---- charts and scaling --------------------------------------------------------------------------


def _charts(charts: Sequence[report_charts.Chart]) -> str:
    return "".join(figure(chart) for chart in charts)


def figure(chart: report_charts.Chart) -> str:
    """A chart with its title above and what to look for below."""
    return (
        f"<figure><h3>{text(chart.title)} <small>{text(chart.y_label)}</small></h3>"
        f"{report_svg.render(chart)}<figcaption>{text(chart.caption)}</figcaption></figure>"
    )


def training(report: report_data.Report) -> str:
    charts = report_charts.training(report)
    if not charts:
        raise ValueError("no run has logged a step yet")
    return f'<div class="charts">{_charts(charts)}</div>'


def scaling(studies: Sequence[scaling_points.Study]) -> str:
    """Curves with bands, and what each form promised for the budget it had not seen."""
    charts = _charts([report_charts.scaling(study) for study in studies])
    fits = experiment_scaling_tables.fits(list(map(scaling_studies.entry, studies)))
    notes = dict.fromkeys(
        f"{report_data.arm_label(study.arm)}: {note}" for study in studies for note in study.notes
    )
    listed = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f'<div class="charts">{charts}</div>{of_cells(fits)}<ul class="quiet">{listed}</ul>'
