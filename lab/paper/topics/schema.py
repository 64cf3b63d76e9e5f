"""What each system adds to a static dictionary, drawn in one notation; no data."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from lab.paper.register import Found, register
from lab.paper.style import PAGE, panels

RESIDUAL, CODE, ADDED, GIVEN = "#B0B0B0", "#0072B2", "#D55E00", "#009E73"
TOKENS = 4
LAST = TOKENS - 1
LATENTS = 5
CELL = 0.17
FIRES = ((4, 1), (3, 1), (4, 0), (4, 2))
"""The latents that fire at each token of the drawing, counted from below."""


def bottom(t: int) -> tuple[float, float]:
    """Where an arrow enters the code of token t."""
    return float(t), 1.0


def top(t: int) -> tuple[float, float]:
    """Where an arrow leaves the residual of token t."""
    return float(t), 0.27


def cell(t: int, latent: int) -> tuple[float, float]:
    """The middle of one latent of token t."""
    return float(t), 1.05 + CELL * (latent + 0.5)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str = "black",
    bend: float = 0.0,
    line: str = "-",
) -> None:
    """One arrow, bent by ``bend`` of its length."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=6, color=colour, linewidth=0.9,
            linestyle=line, connectionstyle=f"arc3,rad={bend}", shrinkA=1.5, shrinkB=1.5, zorder=3,
        )
    )  # fmt: skip


def base(axes: Axes, name: str) -> None:
    """Residuals below, codes above, of the last tokens of a text; the last one encoded by itself."""
    for t in range(TOKENS):
        axes.scatter(t, 0.14, s=60, color=RESIDUAL, edgecolor="black", linewidth=0.6, zorder=2)
        back = f"_{{t-{LAST - t}}}" if t < LAST else "_t"
        axes.text(t, -0.28, rf"$x{back}$", ha="center", va="center", fontsize=7)
        for latent in range(LATENTS):
            x, y = cell(t, latent)
            colour = CODE if latent in FIRES[t] else "white"
            box = (x - 0.16, y - CELL / 2)
            axes.add_patch(Rectangle(box, 0.32, CELL, facecolor=colour, edgecolor="black", lw=0.6))
    axes.text(LAST + 0.24, 1.2, r"$z_t$", ha="left", va="center", fontsize=7)
    arrow(axes, top(LAST), bottom(LAST))
    axes.set_title(name, fontsize=8)
    axes.set(xlim=(-0.6, 3.85), ylim=(-0.45, 2.85), aspect="equal")
    axes.axis("off")


def static(axes: Axes) -> None:
    """Every token by itself."""
    base(axes, "static")
    for t in range(LAST):
        arrow(axes, top(t), bottom(t), RESIDUAL)


def conv(axes: Axes) -> None:
    """Earlier residuals of the same segment join; groups of latents are kept steady."""
    base(axes, "Conv")
    for t in (1, 2):
        arrow(axes, top(t), bottom(LAST), ADDED)
    arrow(axes, top(0), (0.6, 0.45), ADDED, line=":")
    axes.plot([0.5, 0.5], [-0.1, 2.35], color=GIVEN, linestyle="--", linewidth=1)
    axes.text(0.55, 2.45, "boundary", ha="center", fontsize=6, color=GIVEN)
    arrow(axes, cell(2, 4), cell(LAST, 4), ADDED, line=":")
    axes.text(2.1, 2.12, "consistent", ha="center", fontsize=6, color=ADDED)


def causal(axes: Axes) -> None:
    """Which latent follows which, from the codes; chains of them."""
    base(axes, "Causal")
    chain = (cell(0, 4), cell(1, 3), cell(2, 0), cell(LAST, 2))
    for start, end in zip(chain, chain[1:], strict=False):
        arrow(axes, start, end, ADDED, bend=0.1)
    axes.text(1.5, 2.2, r"$C_\ell[j\to i]$", ha="center", fontsize=7, color=ADDED)


def lstm(axes: Axes) -> None:
    """A state over residuals and a memory of codes, behind a gate and a bridge."""
    base(axes, "LSTM")
    for t in range(TOKENS):
        box = (t - 0.2, 0.5)
        axes.add_patch(
            Rectangle(box, 0.4, 0.22, facecolor=ADDED, edgecolor="black", lw=0.6, zorder=4)
        )
        if t:
            arrow(axes, (t - 0.8, 0.61), (t - 0.2, 0.61), ADDED)
    arrow(axes, (LAST + 0.2, 0.7), (LAST + 0.2, 1.02), ADDED)
    axes.text(-0.42, 0.61, "$h$", ha="center", va="center", fontsize=7, color=ADDED)
    for t in (1, 2):
        arrow(axes, (t, 1.95), (LAST - 0.1, 1.95), ADDED, bend=-0.35)
    axes.text(1.9, 2.45, r"memory $m_t$; $\rho\odot g$", ha="center", fontsize=6, color=ADDED)


def glta(axes: Axes) -> None:
    """A latent's own trace is taken from it, by one law for all."""
    base(axes, "GLTA")
    for t in range(LAST):
        arrow(axes, cell(t, 1), cell(t + 1, 1), ADDED)
    axes.text(1.6, 2.2, r"$-\theta_i m_{i,t-1}$", ha="center", fontsize=7, color=ADDED)


def hierarchical(axes: Axes) -> None:
    """A second level encodes the codes; a sparse matrix says of what a parent is made."""
    base(axes, "Hierarchical")
    for place in range(2):
        box = (LAST - 0.32 + 0.32 * place, 2.5)
        colour = ADDED if place else "white"
        axes.add_patch(Rectangle(box, 0.32, CELL, facecolor=colour, edgecolor="black", lw=0.6))
    for latent in FIRES[LAST]:
        arrow(axes, cell(LAST, latent), (LAST + 0.16, 2.5), ADDED, bend=0.4)
    axes.text(LAST - 0.42, 2.6, "$y_t$", ha="right", va="center", fontsize=7)
    axes.text(LAST - 0.12, 2.2, "$M$", ha="right", va="center", fontsize=7, color=ADDED)


def slowfast(axes: Axes) -> None:
    """Which slow latents are on is read from a leaky mean; how strongly, from the token."""
    base(axes, "SlowFast")
    for t in range(LAST):
        arrow(axes, top(t), (LAST - 0.1, 1.0), ADDED)
    for latent in (4, 3):
        box = (-0.16, 1.05 + CELL * latent)
        axes.add_patch(Rectangle(box, LAST + 0.32, CELL, facecolor="none", edgecolor=ADDED, lw=1.1))
    axes.text(1.5, 2.2, "stays on", ha="center", fontsize=6, color=ADDED)


SYSTEMS: tuple[Callable[[Axes], None], ...] = (
    static, conv, causal, lstm, glta, hierarchical, slowfast,
)  # fmt: skip


@register("systems", needs=(), main=True)
def systems(found: Found) -> Figure:
    """The static dictionary and the six systems: grey residuals, blue codes, orange what is added."""
    del found  # it shows no data
    figure, axes = panels(1, len(SYSTEMS), PAGE, 0.98)
    for place, draw in zip(axes[0], SYSTEMS, strict=True):
        draw(place)
    return figure
