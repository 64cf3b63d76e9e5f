"""The API pages: ``python workflow/api.py`` writes build/api, one page a module, warnings as errors.

pdoc leaves out a package's modules where ``__all__`` names what to import from it; a reference has
them all.
"""

import pkgutil
import warnings
from pathlib import Path

# Without a cache it lists the fonts by a program, which pdoc does not let the modules run.
import matplotlib.font_manager  # noqa: F401
from pdoc import doc, render

import lab
import tsae

OUT = Path(__file__).resolve().parents[1] / "build" / "api"


def main() -> None:
    warnings.simplefilter("error", UserWarning)  # pdoc warns of what it cannot import or read
    found = [
        m for room in (tsae, lab) for m in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
    ]
    names = [
        "tsae",
        "lab",
        *(module.name for module in found if not module.name.endswith("__main__")),
    ]
    modules = {name: doc.Module.from_name(name) for name in names}
    render.configure(docformat="restructuredtext")
    for name, module in modules.items():
        inside = [m for other, m in modules.items() if other.rpartition(".")[0] == name]
        vars(module)["submodules"] = inside
        page = OUT / f"{name.replace('.', '/')}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render.html_module(module, modules), encoding="utf-8")
    (OUT / "index.html").write_text(render.html_index(modules), encoding="utf-8")
    (OUT / "search.js").write_text(render.search_index(modules), encoding="utf-8")
    print(f"wrote {len(modules)} pages: open build/api/index.html")


if __name__ == "__main__":
    main()
