"""A feature browser: what chosen latents do, as one HTML file that opens without a network."""

from pathlib import Path
from typing import Any

from lab.browser.latents import BrowserConfig, choose, view_latents
from lab.browser.page import page
from tsae.files import atomic
from tsae.saes import SAE
from tsae.saes.config import require_fields


def write_browser(
    sae: SAE,
    store: Any,
    world: Any,
    path: str | Path,
    latents: list[int] | None = None,
    *,
    title: str | None = None,
    **options: Any,
) -> Path:
    """Write the page of ``latents`` (by default those of :func:`choose`) to ``path``.

    ``options`` are the fields of :class:`BrowserConfig`. The file holds everything it needs and text
    from the corpus is escaped; its one script searches the latents and takes keys, and nothing is
    missing without it. Raises ValueError for a bad option or a latent out of range,
    :class:`UserError` for a store of another world or a full disk.
    """
    require_fields(BrowserConfig, options)
    config = BrowserConfig(**options)
    chosen = choose(sae, store, config) if latents is None else latents
    views = view_latents(sae, store, world, chosen, config)
    name = f"{getattr(sae, 'name', 'SAE')} ({sae.cfg.act}) · {world.name}, layer {store.layer}"
    with atomic(Path(path)) as unfinished:
        unfinished.write_text(page(views, title or name, config), encoding="utf-8")
    return Path(path)
