"""The browser's HTML: one file, no asset, every piece of text escaped; readable without its script."""

import math
from html import escape

from lab.browser.neighbours import Neighbour
from lab.browser.views import BrowserConfig, Context, LatentView

STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --soft: #5c6470; --line: #d9dde3; --hot: 213, 94, 0; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
header { padding: 1.2rem 1.5rem .6rem; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.25rem; margin: 0 0 .2rem; }
p.note { color: var(--soft); margin: .1rem 0; max-width: 60rem; font-size: .85rem; }
.legend { white-space: nowrap; }
.scale { display: inline-block; width: 6rem; height: .7rem; margin: 0 .3rem; border-radius: 2px;
  background: linear-gradient(90deg, rgba(var(--hot), .1), rgba(var(--hot), .9)); }
main { display: flex; align-items: flex-start; }
nav { position: sticky; top: 0; max-height: 100vh; overflow-y: auto; flex: 0 0 17rem;
  padding: 1rem .8rem 1rem 1.5rem; }
nav input { width: 100%; font: inherit; padding: .25rem .5rem; margin-bottom: .5rem;
  border: 1px solid var(--soft); border-radius: 4px; }
nav a { display: grid; grid-template-columns: 3.2rem 1fr auto; gap: .4rem; color: inherit;
  text-decoration: none; padding: .1rem .3rem; border-radius: 3px; }
nav a:hover { background: #eef1f5; }
nav b { font-weight: 400; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.group { padding: .2rem .3rem 0; }
nav span { color: var(--soft); font-size: .8rem; }
:focus-visible { outline: 2px solid rgb(0, 114, 178); outline-offset: 1px; }
[hidden] { display: none !important; }
article { flex: 1; min-width: 0; padding: 0 1.5rem 4rem; border-left: 1px solid var(--line); }
section { padding: 1.4rem 0; border-bottom: 1px solid var(--line); scroll-margin-top: 0; }
h2 { font-size: 1.05rem; margin: 0 0 .5rem; }
h3, .group { font-size: .8rem; margin: .2rem 0; color: var(--soft); font-weight: 600; }
.facts { display: block; color: var(--soft); font-weight: 400; font-size: .85rem; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem 1.5rem;
  margin-top: .8rem; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.context { font: 13px/1.7 ui-monospace, Menlo, Consolas, monospace; margin: 0 0 .25rem;
  padding: .1rem .4rem; border-left: 3px solid var(--line); overflow-wrap: anywhere; }
.context i, td i { font-style: normal; white-space: pre-wrap; border-radius: 2px; }
.context .peak { outline: 1px solid var(--ink); font-weight: 700; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { padding: 0 .6rem 0 0; text-align: left; font-variant-numeric: tabular-nums;
  vertical-align: top; }
th { color: var(--soft); font-weight: 400; }
td i { background: #eef1f5; padding: 0 .2rem; font-family: ui-monospace, Menlo, monospace; }
td.n { text-align: right; }
.bar { display: inline-block; height: .65rem; background: rgb(0, 114, 178); vertical-align: middle; }
@media (max-width: 700px) {
  header { padding: 1rem 1rem .6rem; }
  main { display: block; }
  nav { position: static; max-height: 14rem; padding: .8rem 1rem;
    border-bottom: 1px solid var(--line); }
  article { border: 0; padding: 0 1rem 3rem; }
}
"""
# Search and keys; without it the list and the links still work.
SCRIPT = """
const box = document.querySelector("nav input");
const links = [...document.querySelectorAll("nav a")];
const shown = () => links.filter(link => !link.hidden);
const section = link => document.querySelector(link.hash);
const words = links.map(link => section(link).textContent.toLowerCase());
box.hidden = false;
box.addEventListener("input", () => {
  const asked = box.value.trim().toLowerCase();
  links.forEach((link, i) => {
    link.hidden = !words[i].includes(asked);
    section(link).hidden = link.hidden;
  });
  document.querySelector("nav p").hidden = shown().length > 0;
});
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === box) {
    if (event.key === "Escape") box.blur();
    return;
  }
  if (event.key === "/") { event.preventDefault(); box.focus(); }
  const step = {j: 1, k: -1}[event.key], found = shown();
  if (!step || !found.length) return;
  const tops = found.map(link => section(link).getBoundingClientRect().top);
  const at = step > 0 ? tops.findIndex(top => top > 1) : tops.findLastIndex(top => top < -1);
  if (at >= 0) { section(found[at]).scrollIntoView(); found[at].focus({preventScroll: true}); }
});
"""
MAX_DWELL = 10
_SHOWN = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def page(found: list[LatentView], title: str, config: BrowserConfig) -> str:
    """The whole page of the views, in the order given."""
    shown = {view.latent for view in found}
    grouped = len({view.group for view in found}) > 1
    links = "\n".join(
        (_heading(view.group) if grouped and (not i or found[i - 1].group != view.group) else "")
        + _link(view)
        for i, view in enumerate(found)
    )
    sections = "\n".join(_section(view, shown, grouped) for view in found)
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
{escape(config.split)} split, named by the tokens at which they are strongest. Colour: the latent's
code, <span class="legend">from 0<span class="scale" aria-hidden="true"></span>to its
largest</span>; the outlined token is the strongest. A context ends where its document does. Logit
effects are read by the unembedding alone. Neighbours are latents that start more often before or
after than their own rate explains; they are descriptions, not tests. Keys: / search, j and k next
and previous latent.</p>
</header>
<main>
<nav aria-label="Latents">
<input type="search" aria-label="Search latents by number, name or text" placeholder="Search" hidden>
<p class="note" role="status" hidden>No latent has that.</p>
{links}
</nav>
<article>
{sections}
</article>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _heading(group: str) -> str:
    return f'<h2 class="group">{escape(group)}</h2>\n'


def _link(view: LatentView) -> str:
    return (
        f'<a href="#latent-{view.latent}">{view.latent} <b>{_text(view.name)}</b> '
        f"<span>{view.density:.2%}</span></a>"
    )


def _section(view: LatentView, shown: set[int], grouped: bool) -> str:
    contexts = "\n".join(_context(context, view.peak) for context in view.contexts)
    name = f": {_text(view.name)}" if view.name else ""
    group = f"{escape(view.group)} · " if grouped else ""
    return f"""<section id="latent-{view.latent}" aria-labelledby="name-{view.latent}">
<h2 id="name-{view.latent}">Latent {view.latent}{name}<span class="facts">{group}active on
{view.density:.2%} of tokens · largest code {view.peak:.2f}</span></h2>
{contexts or '<p class="note">It is silent on these tokens.</p>'}
<div class="side">
{_tokens("Raises", view.raised)}
{_tokens("Lowers", view.lowered)}
{_dwell(view)}
</div>
<div class="side wide">
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
        f'<tr><td><i>{_text(string)}</i></td><td class="n">{_signed(value)}</td></tr>'
        for string, value in tokens
    )
    return f"<div><h3>{name}</h3><table>{rows}</table></div>"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _dwell(view: LatentView) -> str:
    short = dict.fromkeys(range(1, MAX_DWELL + 1), 0)
    for length, count in view.dwell:
        short[min(length, MAX_DWELL)] += count
    most = max(short.values()) or 1
    rows = "".join(
        f'<tr><td class="n">{length}{"+" if length == MAX_DWELL else ""}</td>'
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
        cells = (one.lag, f"{one.share:.0%}", f"{one.lift:.1f}×", one.times)
        rows += f"<tr><td>{link if one.latent in shown else one.latent}</td>"
        rows += "".join(f'<td class="n">{cell}</td>' for cell in cells)
        rows += f"<td>{_text(one.name)}</td></tr>"
    heads = ("latent", "lag", "share", "lift", "times", "strongest at")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return f"<div><h3>{name}</h3><table><tr>{head}</tr>{rows}</table></div>"
