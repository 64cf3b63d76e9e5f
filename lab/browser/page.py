"""The browser's HTML: one file, no asset, every piece of text escaped; readable without its script."""

import math
from html import escape
from pathlib import Path
from string import Template

from lab.browser.latents import BrowserConfig, Context, LatentView, Neighbour

MAX_DWELL = 10
_SHOWN = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def page(views: list[LatentView], title: str, config: BrowserConfig) -> str:
    """The whole page of the views, in the order given."""
    shown = {view.latent for view in views}
    grouped = len({view.group for view in views}) > 1
    opens = [i for i, v in enumerate(views) if not i or views[i - 1].group != v.group]
    links = "\n".join(
        (_heading(view.group) if grouped and i in opens else "") + _link(view)
        for i, view in enumerate(views)
    )
    sections = "\n".join(_section(view, shown, grouped) for view in views)
    return Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        n=len(views),
        tokens=f"{config.limit_tokens:,}",
        split=escape(config.split),
        links=links,
        sections=sections,
    )


def _heading(group: str) -> str:
    return f'<h2 class="group">{escape(group)}</h2>\n'


def _link(view: LatentView) -> str:
    return (
        f'<a href="#latent-{view.latent}">{view.latent} <b>{_text(view.name)}</b> '
        f"<span>{view.density:.2%}</span></a>"
    )


def _section(view: LatentView, shown: set[int], grouped: bool) -> str:
    contexts = "\n".join(_context(context, view.peak) for context in view.contexts)
    stays = "\n".join(_stay(context, view.peak) for context in view.contexts[:2])
    name = f": {_text(view.name)}" if view.name else ""
    group = f"{escape(view.group)} · " if grouped else ""
    return f"""<section id="latent-{view.latent}" aria-labelledby="name-{view.latent}">
<h2 id="name-{view.latent}">Latent {view.latent}{name}<span class="facts">{group}active on
{view.density:.2%} of tokens · largest code {view.peak:.2f}</span></h2>
{stays}
{contexts or '<p class="note">It is silent on these tokens.</p>'}
<div class="side">
{_tokens("Raises", view.raised)}
{_tokens("Lowers", view.lowered)}
{_dwell(view)}
{_neighbours("Before it", view.predecessors, shown)}
{_neighbours("After it", view.successors, shown)}
</div>
</section>"""


def _stay(context: Context, largest: float) -> str:
    """The code over a whole document: a bar where it is on, as high as it is large."""
    bars = "".join(
        f'<rect x="{t}" y="{1 - value / largest:.3f}" width="1" height="{value / largest:.3f}"/>'
        for t, value in enumerate(context.stay)
        if value > 0
    )
    title = f"code over the {len(context.stay)} tokens of document {context.doc}"
    return (
        f'<svg role="img" aria-label="{title}" viewBox="0 0 {len(context.stay)} 1" '
        f'preserveAspectRatio="none" fill="rgb(213, 94, 0)">{bars}</svg>'
    )


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
        f'<tr><td><i>{_text(string)}</i></td><td class="n">{f"{value:+.2f}".replace("-", "−")}</td></tr>'
        for string, value in tokens
    )
    return f"<div><h3>{name}</h3><table>{rows}</table></div>"


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
