"""``{picture}``: what the page's own Python blocks draw, drawn when the site is built.

The blocks before the directive are run, once for a page, and the matplotlib figure that the named
variable then holds becomes an SVG file of the site. So a picture is never older than the code
beside it, and the repository holds none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# The same run gives the same file, byte for byte.
_STYLE = {"svg.hashsalt": "hamdeq", "font.size": 10}


class Picture(SphinxDirective):
    """A figure of the page's own code: its argument is the variable, its content the caption."""

    required_arguments = 1
    has_content = True
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        if "alt" not in self.options:
            raise self.error("picture: expected :alt:, a text for those who do not see it")
        name = self.arguments[0]
        drawn = self._scope().get(name)
        if not hasattr(drawn, "savefig"):
            raise self.error(f"picture: expected {name!r} to be a figure by here, got {drawn!r}")
        folder = Path(self.env.doctreedir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.env.docname.replace('/', '-')}-{name}.svg"
        with mpl.rc_context(_STYLE):
            drawn.savefig(path, format="svg", metadata={"Date": None})
        image = nodes.image(
            uri="/" + os.path.relpath(path, self.env.srcdir), alt=self.options["alt"]
        )
        figure = nodes.figure("", image, classes=["picture"])
        if self.content:
            caption, messages = self.parse_inline(" ".join(self.content))
            figure += nodes.caption("", "", *caption)
            return [figure, *messages]
        return [figure]

    def _scope(self) -> dict[str, Any]:
        """What the page's names stand for, once its blocks before this line have run."""
        scope, done = self.env.temp_data.setdefault("picture_scope", ({}, [0]))
        text = Path(self.env.doc2path(self.env.docname)).read_text(encoding="utf-8")
        before = "".join(text.splitlines(keepends=True)[: self.lineno - 1])
        blocks = _BLOCK.findall(before)
        for block in blocks[done[0] :]:
            exec(compile(block, self.env.docname, "exec"), scope)
        done[0] = len(blocks)
        return scope


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
