"""What the site takes from elsewhere in the repository: mkdocs calls these functions (`hooks` in mkdocs.yml).

A line `{figures: cpu}` in a page becomes the figures that stand in the README between the marks of that name,
which `python -m bench.report` writes from the raw results. The pictures beside them are copied.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the figures in the places of their lines."""
    return re.sub(r"^\{figures: (\w+)\}$", lambda found: figures(found[1]), markdown, flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """The page's HTML with the options of commands marked, which its style sheet keeps on one line."""
    return re.sub(
        r"<code>[^<]*</code>",
        lambda code: re.sub(r"(?<![\w-])--[a-z][a-z-]*", r'<span class="option">\g<0></span>', code[0]),
        html,
    )


def on_files(files: Any, config: Any) -> Any:
    """The site's files, and the pictures of the benchmarks."""
    from mkdocs.structure.files import File

    for picture in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def figures(name: str) -> str:
    """The README's figures of one machine, with links that hold on the site."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(f"<!-- figures: {name} -->\n(.*?)<!-- end of figures: {name} -->", readme, re.DOTALL)
    if found is None:
        raise ValueError(f"README.md must have figures of {name!r} between their marks")
    text = re.sub(r"!\[(.*?)\]\(bench/(results/.*?)\)", r"![\1](\2)", found[1])
    return re.sub(r"\[(.*?)\]\(bench/results/.*?\.json\)", r"`\1`", text)
