"""What each system adds to a static dictionary, drawn in one notation; no data."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from lab.paper import style
from lab.paper.register import Found, register

RESIDUAL, CODE, ADDED, GIVEN = "#B0B0B0", "#0072B2", "#D55E00", "#009E73"
LAST, LATENTS, CELL = 3, 5, 0.17
FIRES = ((4, 1), (3, 1), (4, 0), (4, 2))
"""The latents that fire at each token of the drawing, counted from below."""
Point = tuple[float, float]


def code(t: int) -> Point:
    """Where an arrow enters the code of token t."""
    return float(t), 1.0


def residual(t: int) -> Point:
    """Where an arrow leaves the residual of token t."""
    return float(t), 0.27


def latent(t: int, place: int) -> Point:
    """The middle of one latent of token t."""
    return float(t), 1.05 + CELL * (place + 0.5)


def arrow(start: Point, end: Point, colour: str = ADDED, bend: float = 0.0, line: str = "-"):
    """One arrow, bent by ``bend`` of its length."""
    return FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=6, color=colour, linewidth=0.9, zorder=3,
        linestyle=line, connectionstyle=f"arc3,rad={bend}", shrinkA=1.5, shrinkB=1.5,
    )  # fmt: skip


def box(left: Point, width: float, height: float, fill: str = ADDED, edge: str = "black"):
    """One box from its lower left corner."""
    return Rectangle(left, width, height, facecolor=fill, edgecolor=edge, lw=0.8, zorder=3)


def word(x: float, y: float, text: str, colour: str = ADDED) -> tuple[Any, ...]:
    """A text and its middle."""
    return x, y, text, colour


CHAIN = (latent(0, 4), latent(1, 3), latent(2, 0), latent(LAST, 2))


def additions() -> dict[str, list[Any]]:
    """What each system adds: arrows, boxes and texts, made anew for each figure."""
    return {
        "static": [arrow(residual(t), code(t), RESIDUAL) for t in range(LAST)],
        "Conv": [
            *(arrow(residual(t), code(LAST)) for t in (1, 2)),
            arrow(residual(0), (0.6, 0.45), line=":"),
            arrow((0.5, -0.1), (0.5, 2.35), GIVEN, line="--"),
            word(0.6, 2.6, "boundary", GIVEN),
            arrow(latent(2, 4), latent(LAST, 4), line=":"),
            word(2.3, 2.2, "consistent"),
        ],
        "Causal": [
            *(arrow(a, b, bend=0.1) for a, b in zip(CHAIN, CHAIN[1:], strict=False)),
            word(1.5, 2.25, r"$C_\ell[j\to i]$"),
        ],
        "LSTM": [
            *(box((t - 0.2, 0.5), 0.4, 0.22) for t in range(LAST + 1)),
            *(arrow((t - 0.8, 0.61), (t - 0.2, 0.61)) for t in range(1, LAST + 1)),
            arrow((LAST + 0.2, 0.7), (LAST + 0.2, 1.02)),
            *(arrow((t, 1.95), (LAST - 0.1, 1.95), bend=-0.35) for t in (1, 2)),
            word(-0.42, 0.61, "$h$"),
            word(1.6, 2.6, r"memory $m_t$; $\rho\odot g$"),
        ],
        "GLTA": [
            *(arrow(latent(t, 1), latent(t + 1, 1)) for t in range(LAST)),
            word(1.6, 2.25, r"$-\theta_i m_{i,t-1}$"),
        ],
        "Hierarchical": [
            box((LAST - 0.32, 2.5), 0.32, CELL, "white"),
            box((LAST, 2.5), 0.32, CELL),
            *(arrow(latent(LAST, place), (LAST + 0.16, 2.5), bend=0.4) for place in FIRES[LAST]),
            word(LAST - 0.62, 2.6, "$y_t$", "black"),
            word(LAST - 0.32, 2.2, "$M$"),
        ],
        "SlowFast": [
            *(arrow(residual(t), (LAST - 0.1, 1.0)) for t in range(LAST)),
            *(box((-0.16, 1.05 + CELL * n), LAST + 0.32, CELL, "none", ADDED) for n in (4, 3)),
            word(1.5, 2.25, "stays on"),
        ],
    }


def base(axes: Axes) -> None:
    """Residuals below, codes above, of the last tokens of a text; the last one encoded by itself."""
    for t in range(LAST + 1):
        axes.scatter(t, 0.14, s=60, color=RESIDUAL, edgecolor="black", linewidth=0.6, zorder=2)
        if t in (0, LAST):
            name = rf"$x_{{t-{LAST}}}$" if t == 0 else "$x_t$"
            axes.text(t, -0.35, name, ha="center", va="center")
        for place in range(LATENTS):
            x, y = latent(t, place)
            fill = CODE if place in FIRES[t] else "white"
            axes.add_patch(Rectangle((x - 0.16, y - CELL / 2), 0.32, CELL, facecolor=fill,
                                     edgecolor="black", lw=0.6))  # fmt: skip
    axes.text(LAST + 0.24, 1.2, r"$z_t$", va="center")
    axes.add_patch(arrow(residual(LAST), code(LAST), "black"))


@register("systems")
def systems(found: Found) -> Figure:
    """The static dictionary and the six systems: grey residuals, blue codes, orange what is added."""
    del found  # it shows no data
    added = additions()
    figure, axes = style.panels(1, len(added), style.PAGE, 1.05)
    for panel, (name, parts) in zip(axes[0], added.items(), strict=True):
        base(panel)
        for part in parts:
            if isinstance(part, tuple):
                panel.text(*part[:3], ha="center", va="center", color=part[3])
            else:
                panel.add_patch(part)
        panel.set_title(name)
        panel.set(xlim=(-0.6, 3.85), ylim=(-0.6, 2.9), aspect="equal")
        panel.axis("off")
    return figure
