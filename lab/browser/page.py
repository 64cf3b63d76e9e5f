"""The browser's HTML: one file, no asset, every piece of text escaped; readable without its script."""

import math
from collections import Counter
from pathlib import Path

import jinja2

from lab.browser.latents import BrowserConfig, LatentView

MAX_DWELL = 10
SHOWN = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍"})


def stays(view: LatentView) -> list[tuple[int, int]]:
    """How many stays last 1, 2, … and at least :data:`MAX_DWELL` tokens."""
    counts: Counter[int] = Counter()
    for length, count in view.dwell:
        counts[min(length, MAX_DWELL)] += count
    return sorted(counts.items())


def percent(share: float, decimals: int) -> str:
    """``12.5%``."""
    return f"{share:.{decimals}%}"


def page(views: list[LatentView], title: str, config: BrowserConfig) -> str:
    """The whole page of the views, in the order given."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    html = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html.filters |= {"seen": lambda text: text.translate(SHOWN), "stays": stays}
    html.tests["spaced"] = lambda text: text[:1].isspace()  # words carry no spaces of their own
    html.globals |= {"percent": percent, "infinite": math.inf, "max_dwell": MAX_DWELL}
    return html.get_template("page.html").render(
        views=views,
        title=title,
        config=config,
        shown={view.latent for view in views},
        grouped=len({view.group for view in views}) > 1,
    )
