"""The reader of thoughts: documents with their cuts, and every group's thoughts behind its cut.

All of it is in the page as text; the script only shows one document and one group at a time.
Without a script, and on paper, everything stands one below the other.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rpt import report_data

# A page of a long run would grow without end: samples are picked evenly over the steps.
_MOST_DOCUMENTS = 24
# Text behind the last cut, enough to see how the sentence ends.
_CHARACTERS_AFTER = 240
_text = html.escape


def reader(report: report_data.Report) -> str:
    """All chosen samples of all runs that have some.

    Raises:
      ValueError: there are none.
    """
    found = [
        (experiment.label, run, sample)
        for experiment in report.experiments
        for run in experiment.runs.values()
        for sample in run.samples
        if sample["cuts"]
    ]
    if not found:
        raise ValueError("no run has written samples.jsonl: thoughts come from rpt.train")
    chosen = evenly(found, _MOST_DOCUMENTS)
    options, documents = [], []
    for index, (label, run, sample) in enumerate(chosen):
        parts = [part for part in (label, run.label, f"step {sample['step']}") if part]
        name = " \u00b7 ".join([*parts, f"document {index + 1}"])
        options.append(f'<option value="doc{index}">{_text(name)}</option>')
        documents.append(_document(f"doc{index}", name, sample))
    left_out = len(found) - len(chosen)
    note = f" {left_out} more are in samples.jsonl." if left_out else ""
    return (
        '<p class="lead">A document as the model met it. Marked is what it had to predict; choose '
        "a mark to read the thoughts it had there, each with its reward and with the probability "
        "that it left for the true token; the upright stroke is that probability without a "
        f"thought.{note}</p>"
        '<div class="reader"><p class="choose" hidden><label for="choice">Document</label> '
        f'<select id="choice">{"".join(options)}</select>'
        '<span class="quiet">\u2190 \u2192 cuts, [ ] documents</span></p>'
        f"{''.join(documents)}</div>"
    )


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, in their order, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _document(key: str, name: str, sample: Mapping[str, Any]) -> str:
    cuts = sorted(sample["cuts"], key=lambda cut: cut["cut"])
    # Opened first: where thoughts differ most.
    first = min(range(len(cuts)), key=lambda i: abs(_share(cuts[i]) - 0.5))
    groups = "".join(_group(f"{key}-{i}", i, len(cuts), cut) for i, cut in enumerate(cuts))
    return (
        f'<article class="document" id="{key}"><h3>{_text(name)}</h3><div class="spread">'
        f'<div class="text" lang="">{"".join(_marked(key, sample["text"], cuts, first))}</div>'
        f'<div class="groups">{groups}</div></div></article>'
    )


def _marked(key: str, text: str, cuts: Sequence[Mapping[str, Any]], first: int) -> Iterator[str]:
    """The text with a button at every cut; cuts without a place come after it."""
    at, unplaced = 0, []
    for i, cut in enumerate(cuts):
        start, target = cut.get("offset"), cut["target"]
        if start is None or start < at or not text.startswith(target, start):
            unplaced.append(_mark(key, i, cut, i == first))
            continue
        yield _text(text[at:start])
        yield _mark(key, i, cut, i == first)
        at = start + len(target)
    rest = text[at:]
    yield _text(rest[:_CHARACTERS_AFTER]) + ("\u2026" if len(rest) > _CHARACTERS_AFTER else "")
    if unplaced:
        yield f'<p class="quiet">Elsewhere: {" ".join(unplaced)}</p>'


def _mark(key: str, index: int, cut: Mapping[str, Any], pressed: bool) -> str:
    share = _share(cut)
    target = _visible(cut["target"])
    return (
        f'<button type="button" class="cut" data-group="{key}-{index}" style="--share:{share:.3f}" '
        f'aria-controls="{key}-{index}" aria-pressed="{str(pressed).lower()}" '
        f'title="{share:.0%} of the thoughts are right">{_text(target)}</button>'
    )


def _share(cut: Mapping[str, Any]) -> float:
    """Of the group's thoughts, those with a reward."""
    thoughts = cut["thoughts"]
    return sum(thought["reward"] > 0 for thought in thoughts) / max(len(thoughts), 1)


def _visible(target: str) -> str:
    """White space at the ends of a token belongs to it."""
    bare = target.strip(" \n\t")
    if not bare:
        return target.replace(" ", "\u2423").replace("\n", "\u21b5").replace("\t", "\u21e5")
    return target


def _group(key: str, index: int, count: int, cut: Mapping[str, Any]) -> str:
    before = cut.get("no_think_prob")
    right = sum(thought["reward"] > 0 for thought in cut["thoughts"])
    target = _text(_visible(cut["target"]))
    head = (
        f'<h4>cut {index + 1} of {count}: <q class="target">{target}</q></h4>'
        f'<p class="sum">{right} of {len(cut["thoughts"])} thoughts right'
        f"{'' if before is None else f'; probability without a thought {before:.3f}'}</p>"
    )
    order = sorted(
        cut["thoughts"], key=lambda t: (-t["reward"], -(t.get("prob") or 0.0), len(t["text"]))
    )
    items = "".join(_thought(thought, before) for thought in order)
    return f'<section class="group" id="{key}">{head}<ol class="thoughts">{items}</ol></section>'


def _thought(thought: Mapping[str, Any], before: float | None) -> str:
    right = thought["reward"] > 0
    prob = thought.get("prob")
    meter = ""
    if prob is not None:
        tick = "" if before is None else f'<i class="before" style="left:{100 * before:.1f}%"></i>'
        words = f"{prob:.3f} after the thought"
        words += "" if before is None else f", {before:.3f} before"
        meter = (
            f'<span class="meter" role="img" aria-label="probability {words}" title="{words}">'
            f'<i class="after" style="width:{100 * prob:.1f}%"></i>{tick}</span>'
            f'<span class="prob">{prob:.3f}</span>'
        )
    answer = thought["answer"]
    said = "no answer" if answer is None else f"answer <q>{_text(_visible(answer))}</q>"
    reward = f"reward {thought['reward']:.3g}"
    kind, sign = ("right", "\u2713") if right else ("wrong", "\u2717")
    return (
        f'<li class="{kind}"><p class="facts"><span class="sign">{sign}</span>'
        f"<span>{said}</span><span>{reward}</span>{meter}</p>"
        f'<p class="thought" lang="">{_text(thought["text"])}</p></li>'
    )
