"""The browser's HTML: one file, no script, no asset, every piece of text escaped."""

import math
from html import escape

from tsae.browser.views import BrowserConfig, Context, LatentView, Neighbour

STYLE = """
:root { --ink: #1b1b1b; --soft: #5c6470; --line: #d9dde3; --hot: 213, 94, 0; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
header { padding: 1.2rem 1.5rem .6rem; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.25rem; margin: 0 0 .2rem; }
p.note { color: var(--soft); margin: .1rem 0; max-width: 60rem; font-size: .85rem; }
main { display: flex; }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; flex: 0 0 14rem;
  padding: 1rem .8rem 1rem 1.5rem; border-right: 1px solid var(--line); }
nav a { display: block; color: inherit; text-decoration: none; padding: .1rem .3rem; }
nav a:hover, nav a:focus { background: #eef1f5; }
nav span { color: var(--soft); font-size: .8rem; }
article { flex: 1; min-width: 0; padding: 0 1.5rem 4rem; }
section { padding: 1.4rem 0; border-bottom: 1px solid var(--line); }
h2 { font-size: 1.05rem; margin: 0 0 .5rem; }
h3 { font-size: .8rem; margin: .2rem 0; color: var(--soft); font-weight: 600; }
.facts { color: var(--soft); font-weight: 400; font-size: .85rem; margin-left: .6rem; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem 1.5rem; }
.context { font: 13px/1.7 ui-monospace, Menlo, Consolas, monospace; margin: 0 0 .25rem;
  padding: .1rem .4rem; border-left: 3px solid var(--line); overflow-wrap: anywhere; }
.context i, td i { font-style: normal; white-space: pre-wrap; border-radius: 2px; }
.context .peak { outline: 1px solid var(--ink); font-weight: 700; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { padding: 0 .6rem 0 0; text-align: left; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 400; }
td i { background: #eef1f5; padding: 0 .2rem; font-family: ui-monospace, Menlo, monospace; }
.bar { display: inline-block; height: .65rem; background: rgb(0, 114, 178); vertical-align: middle; }
@media (max-width: 700px) { nav { display: none; } }
"""
MAX_DWELL = 10
_SHOWN = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def page(found: list[LatentView], title: str, config: BrowserConfig) -> str:
    """The whole page of the views, in the order given."""
    shown = {view.latent for view in found}
    links = "\n".join(
        f'<a href="#latent-{view.latent}">{view.latent} <span>{escape(view.group)}, '
        f"{view.density:.2%}</span></a>"
        for view in found
    )
    sections = "\n".join(_section(view, shown) for view in found)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="note">{len(found)} latents over up to {config.limit_tokens:,} tokens of the
{escape(config.split)} split. Colour: the latent's code, relative to its largest; the outlined token
is the strongest. A context ends where its document does. Logit effects are read by the unembedding
alone. Neighbours are latents that start more often before or after than their own rate
explains; they are descriptions, not tests.</p>
</header>
<main>
<nav aria-label="Latents">
{links}
</nav>
<article>
{sections}
</article>
</main>
</body>
</html>
"""


def _section(view: LatentView, shown: set[int]) -> str:
    contexts = "\n".join(_context(context, view.peak) for context in view.contexts)
    return f"""<section id="latent-{view.latent}">
<h2>Latent {view.latent}<span class="facts">{escape(view.group)} · active on {view.density:.2%} of
tokens · largest code {view.peak:.2f}</span></h2>
{contexts or '<p class="note">It is silent on these tokens.</p>'}
<div class="side">
{_tokens("Raises", view.raised)}
{_tokens("Lowers", view.lowered)}
{_dwell(view)}
{_neighbours("Before it", view.predecessors, shown)}
{_neighbours("After it", view.successors, shown)}
</div>
</section>"""


def _text(string: str) -> str:
    for character, mark in _SHOWN.items():
        string = string.replace(character, mark)
    return escape(string)


def _context(context: Context, largest: float) -> str:
    # Word-level tokens carry no spaces of their own.
    gap = "" if any(string[:1].isspace() for string in context.strings) else " "
    spans = []
    tokens = zip(context.strings, context.values, strict=True)
    for place, (string, value) in enumerate(tokens):
        peak = ' class="peak"' if place == context.peak else ""
        if value > 0:
            alpha = 0.1 + 0.8 * min(value / largest, 1.0)
            style = f' style="background: rgba(var(--hot), {alpha:.2f})" title="{value:.3f}"'
        else:
            style = ""
        spans.append(f"<i{peak}{style}>{_text(string)}</i>")
    return f'<p class="context" title="document {context.doc}">{gap.join(spans)}</p>'


def _tokens(name: str, tokens: list[tuple[str, float]]) -> str:
    rows = "".join(
        f"<tr><td><i>{_text(string)}</i></td><td>{value:+.2f}</td></tr>" for string, value in tokens
    )
    return f"<div><h3>{name}</h3><table>{rows}</table></div>"


def _dwell(view: LatentView) -> str:
    short = dict.fromkeys(range(1, MAX_DWELL + 1), 0)
    for length, count in view.dwell:
        short[min(length, MAX_DWELL)] += count
    most = max(short.values()) or 1
    rows = "".join(
        f"<tr><td>{length}{'+' if length == MAX_DWELL else ''}</td>"
        f'<td><span class="bar" style="width: {8 * count / most:.2f}rem"></span> {count}</td></tr>'
        for length, count in short.items()
        if count
    )
    half = f"{view.half_life:.0f}" if math.isfinite(view.half_life) else "none"
    return (
        f"<div><h3>Dwell time in tokens: mean {view.mean_dwell:.1f}, half-life {half}, "
        f"{view.n_runs} runs</h3><table>{rows}</table></div>"
    )


def _neighbours(name: str, found: list[Neighbour], shown: set[int]) -> str:
    if not found:
        return f"<div><h3>{name}</h3><p class='note'>none often enough</p></div>"
    rows = ""
    for one in found:
        link = f'<a href="#latent-{one.latent}">{one.latent}</a>'
        rows += (
            f"<tr><td>{link if one.latent in shown else one.latent}</td><td>{one.lag}</td>"
            f"<td>{one.share:.0%}</td><td>{one.lift:.1f}×</td><td>{one.count}</td></tr>"
        )
    head = "<tr><th>latent</th><th>lag</th><th>share</th><th>lift</th><th>times</th></tr>"
    return f"<div><h3>{name}</h3><table>{head}{rows}</table></div>"
