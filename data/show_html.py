"""One self-contained page: documents with their tokens shaded by entropy.

No script, nothing loaded from elsewhere (its own policy forbids it), every text escaped. A token's
title says its id, bytes, place, entropy and log-probability.
"""

import html
import math
from collections.abc import Sequence
from typing import Protocol

# The entropy of 16 equally probable tokens, which is the most that the index can say.
_MOST_NATS = math.log(16)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --hot: 224, 122, 31; --ink: #1c1c1e; --paper: #fbfaf8;
  --soft: #6d6d72; --line: #dcd9d3; --edge: rgba(0, 0, 0, .16); --cut: #c81e1e; }}
@media (prefers-color-scheme: dark) {{ :root {{ --hot: 240, 140, 40; --ink: #ececec;
  --paper: #17171a; --soft: #9a9aa0; --line: #36363b; --edge: rgba(255, 255, 255, .2);
  --cut: #ff6b6b; }} }}
body {{ margin: 2rem auto; padding: 0 1.25rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.25rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }}
h2 {{ font-size: .95rem; font-weight: 600; margin: 2.25rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }}
.legend {{ color: var(--soft); font-size: .85rem; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem;
  align-items: center; }}
.scale {{ display: inline-block; width: 9rem; height: .8rem; border: 1px solid var(--line);
  vertical-align: -.1rem; margin: 0 .4rem;
  background: linear-gradient(90deg, rgba(var(--hot), 0), rgba(var(--hot), .85)); }}
pre {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 14px/1.85 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
.t {{ background: rgba(var(--hot), calc(var(--e, 0) * .85)); padding: .12em 0; border-radius: 2px;
  box-shadow: inset -1px 0 var(--edge); }}
.t:hover {{ outline: 2px solid var(--soft); }}
.c {{ box-shadow: inset 3px 0 var(--cut), inset -1px 0 var(--edge); padding-left: 4px;
  border-radius: 0; font-weight: 700; }}
.n {{ color: var(--soft); }}
</style>
</head>
<body>
<h1>{title}</h1>
<div class="legend">{legend}</div>
{documents}
</body>
</html>
"""


class Token(Protocol):
    """See `data.show.Token`."""

    @property
    def id(self) -> int: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def offset(self) -> int: ...
    @property
    def entropy(self) -> float: ...
    @property
    def log_prob(self) -> float: ...
    @property
    def is_cut(self) -> bool: ...
    @property
    def text(self) -> str: ...


class Document(Protocol):
    """See `data.show.Document`."""

    @property
    def summary(self) -> str: ...
    @property
    def tokens(self) -> Sequence[Token]: ...


def page(title: str, documents: Sequence[Document]) -> str:
    """The whole page."""
    tokens = [token for document in documents for token in document.tokens]
    legend = ["<span>tokens end at the thin lines; point at one for its bytes</span>"]
    if any(not math.isnan(token.entropy) for token in tokens):
        scale = f'0<span class="scale"></span>{_MOST_NATS:.2f} nats'
        legend.append(f"<span>entropy (top 16) {scale}</span>")
    if any(token.is_cut for token in tokens):
        legend.append('<span><span class="t c">bold</span> is a cut: predict this token</span>')
    return _PAGE.format(
        title=html.escape(title),
        legend="\n".join(legend),
        documents="\n".join(map(_document, documents)),
    )


def share(entropy: float) -> float:
    """0 for no entropy, 1 for the most."""
    return min(max(entropy / _MOST_NATS, 0.0), 1.0)


def _document(document: Document) -> str:
    spans = "".join(map(_span, document.tokens))
    return f"<section>\n<h2>{html.escape(document.summary)}</h2>\n<pre>{spans}</pre>\n</section>"


def _span(token: Token) -> str:
    lines = [f"id {token.id}", f"bytes {token.raw!r} at {token.offset}"]
    style = ""
    if not math.isnan(token.entropy):
        lines.append(f"entropy {token.entropy:.3f} nats")
        style = f' style="--e:{share(token.entropy):.3f}"'
    if not math.isnan(token.log_prob):
        # Not -0.000 for what is certain.
        log_prob = min(token.log_prob, 0.0) or 0.0
        lines.append(f"log-probability {log_prob:.3f} (p = {math.exp(log_prob):.3g})")
    title = html.escape("\n".join(lines), quote=True)
    kind = "t c" if token.is_cut else "t"
    # A newline's mark is soft, and the line breaks outside of it.
    text = html.escape(token.text).replace("\u23ce", '<span class="n">\u23ce</span>')
    return f'<span class="{kind}"{style} title="{title}">{text}</span>'
