"""matplotlib drawings as inline SVG that takes its colours and fonts from the page, so light and dark both
read well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {
    "text": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "s1": "#040401",
    "s2": "#040402",
    "s3": "#040403",
    "s4": "#040404",
    "s5": "#040405",
    "s6": "#040406",
    "s7": "#040407",
    "s8": "#040408",
    "s9": "#040409",
    "s10": "#04040a",
    "s11": "#04040b",
    "s12": "#04040c",
    "page": "#060606",
    "alarm": "#050505",
}
"""Stand-ins that no drawing uses otherwise; each becomes `var(--name)` of report.css."""
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "frontier-report",
    "svg.fonttype": "none",
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11.5,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "text.color": COLOURS["text"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "axes.unicode_minus": True,
    "text.parse_math": False,
}


def draw(name: str, alt: str, width: int, height: int, paint: Callable[[Axes], None]) -> str:
    """One drawing as an inline <svg> element of `width` x `height` CSS pixels at full size.

    `name` prefixes the element ids (several drawings share a page); `alt` is read out by screen readers. The
    same input gives the same bytes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        paint(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(out.getvalue(), name, alt)


def inline(svg: str, name: str, alt: str) -> str:
    """A standalone SVG text as an element of an HTML page: no prologue, no namespaces, own ids, the page's
    colours.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    for word, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{word})")
    svg = re.sub(r"font: ((?:\w+ )?[\d.]+px) [^;\"]+", r"font: \1 var(--sans)", svg)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg class="drawing" role="img" aria-label="{label}" viewBox="{box[0][9:-1]}" width="{float(box[1]):g}">'
    return head + svg[svg.index(">") + 1 :].strip()
