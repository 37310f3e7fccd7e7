"""Formulas of the pages as SVG, set by matplotlib: no script, no fonts, no other host. GitHub sets the same source.

A block of ```math is a formula of its own, \\tag{NAME} its number, an anchor above it is where links lead; $`...`$
stands within a line.
"""

from __future__ import annotations

import re
from html import escape

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

FORMULA = re.compile(r"^(?:<a id=\"\w+\"></a>\n)?```math\n(?P<block>.+?)\n```$|\$`(?P<inline>[^`\n]+)`\$", re.M | re.S)
TAG = re.compile(r"\s*\\tag\{(\w+)\}")
ALIGNED = re.compile(r"\\(?:begin|end)\{aligned\}|&")
SUM = re.compile(r"\\(?:sum|prod)_(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\?\w)")
EM = 200
"""Units of the drawing in one em."""
COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


def drawn(markdown: str) -> str:
    """The page with its formulas as pictures."""

    def one(match: re.Match[str]) -> str:
        if match["inline"]:
            return svg(match["inline"])
        tag = TAG.search(match["block"])
        source = ALIGNED.sub("", TAG.sub("", match["block"]))
        lines = (svg(_displayed(line)) for line in source.split(r"\\"))
        number = f'<span id="{tag[1]}">({tag[1]})</span>' if tag else ""
        return f'<div class="formula" tabindex="0" role="group"><div>{"<br>".join(lines)}</div>{number}</div>'

    return FORMULA.sub(one, markdown)


def _displayed(tex: str) -> str:
    """Fractions in full size and room behind sums, which TeX gives by itself."""
    return SUM.sub(r"\\,\g<0>\\,", tex).replace(r"\frac", r"\dfrac").replace("'", "\u2032")


def svg(tex: str) -> str:
    """One line of TeX as a picture that takes the colour and size of the text around it. ValueError: it is not TeX."""
    source = " ".join(tex.split())
    path = TextPath((0, 0), f"${source}$", size=EM, prop=FontProperties(math_fontfamily="stix"))
    box = path.get_extents()
    left, bottom, width, height = box.x0 - 4, box.y0 - 4, box.width + 8, box.height + 8
    size = f"width:{width / EM:.2f}em;height:{height / EM:.2f}em;vertical-align:{bottom / EM:.2f}em"
    view = f"{left:.0f} {-bottom - height:.0f} {width:.0f} {height:.0f}"
    return (
        f'<svg class="tex" role="img" aria-label="{escape(source)}" viewBox="{view}" style="{size}">'
        f'<path fill="currentColor" d="{outline(path)}"/></svg>'
    )


def outline(path: Path) -> str:
    """The path as SVG has it: y points down."""
    parts = []
    for points, code in path.iter_segments(simplify=False, curves=True):
        numbers = [] if code == Path.CLOSEPOLY else [f"{-v if i % 2 else v:.0f}" for i, v in enumerate(points)]
        parts.append(COMMANDS[code] + " ".join(numbers))
    return "".join(parts)
