"""How a strategy and a source look in every plot: colour and marker say the strategy, line and fill the source."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from frontier_profiling.report.svg import COLOURS

FIXED = {
    "ddp": ("s5", "v"),
    "no_shard": ("s2", "s"),
    "hybrid_1": ("s1", "o"),
    "hybrid_2": ("s6", "^"),
    "hybrid_4": ("s7", "P"),
    "hybrid_8": ("s8", "X"),
    "hybrid_16": ("s10", "v"),
    "shard_grad_op": ("s3", "D"),
    "full_shard": ("s4", "p"),
}
"""Colours hold across studies; what is not named here takes what is left."""
COLOUR_NAMES = ("s1", "s2", "s3", "s4", "s6", "s7", "s8", "s9", "s10", "s11", "s12", "s5")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES = {"measured": "-", "predicted": (0, (5, 2)), "published": (0, (1.2, 1.6))}
DASHES = {"measured": "", "predicted": "5 2", "published": "1.5 2"}
PARTS_MEMORY = {
    "parameters": "s1",
    "gradients": "s7",
    "optimizer": "s3",
    "activations": "s2",
    "gathered": "s4",
    "buffers": "s6",
    "allocator": "s5",
}
PARTS_TIME = {"compute": "s1", "launch": "s7", "optimizer": "s3", "exposed": "alarm", "data": "s6", "other": "s5"}
TIME_WORDS = {
    "exposed": "exposed communication",
    "data": "waiting for data",
    "launch": "launch of kernels",
    "other": "not accounted for",
}
MEMORY_WORDS = {
    "gathered": "gathered weights",
    "buffers": "communication buffers",
    "allocator": "allocator's reserve",
    "before": "resident before the model (interpreter, libraries)",
    "rest": "what came with the model",
}
SHAPES = {
    "o": '<circle cx="14" cy="6" r="4"/>',
    "s": '<rect x="10.4" y="2.4" width="7.2" height="7.2"/>',
    "^": '<path d="M14 1.4L18.4 10H9.6Z"/>',
    "v": '<path d="M14 10.6L9.6 2H18.4Z"/>',
    "D": '<path d="M14 1L19 6L14 11L9 6Z"/>',
    "P": '<path d="M12.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"/>',
    "X": '<path d="M10.2 4L12 2.2L14 4.2L16 2.2L17.8 4L15.8 6L17.8 8L16 9.8L14 7.8L12 9.8L10.2 8L12.2 6Z"/>',
    "p": '<path d="M14 1.5L18.6 4.8L16.8 10.2H11.2L9.4 4.8Z"/>',
}


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Label of a strategy -> (name of the colour, marker), no two of a colour up to twelve, and none alike up to 96."""
    out = {name: FIXED[name] for name in names if name in FIXED}
    taken = {colour for colour, _ in out.values()}
    free = [colour for colour in COLOUR_NAMES if colour not in taken]
    used = set(out.values())
    for turn, name in enumerate(name for name in names if name not in out):
        colour = free.pop(0) if free else COLOUR_NAMES[turn % len(COLOUR_NAMES)]
        wanted = MARKERS[(turn + turn // len(MARKERS)) % len(MARKERS)]
        marker = next((m for m in (wanted, *MARKERS) if (colour, m) not in used), wanted)
        out[name] = (colour, marker)
        used.add(out[name])
    return out


def line(look: tuple[str, str], source: str, **more: object) -> dict:
    """Arguments of `Axes.plot`: measured solid and filled, predicted dashed and hollow, published dotted."""
    colour = COLOURS[look[0]]
    fill = colour if source == "measured" else COLOURS["page"]
    return {
        "color": colour,
        "marker": look[1],
        "linestyle": LINES[source],
        "markersize": 5.0 if source != "published" else 3.5,
        "markerfacecolor": fill,
        "markeredgecolor": colour,
        "markeredgewidth": 1.2,
        "linewidth": 1.6 if source != "published" else 1.3,
        **more,
    }


def legend(entries: dict[str, tuple[str, str]], sources: Sequence[str]) -> Markup:
    """Legend of a plot as HTML that wraps, so that it never covers data: strategies, then sources."""
    out = []
    for name, (colour, marker) in entries.items():
        shape = SHAPES[marker]
        out.append(
            f'<li><svg width="28" height="12" aria-hidden="true" style="color:var(--{colour})"><path d="M1 6H27" stroke="currentColor" stroke-width="1.6"/>'
            f'<g fill="currentColor">{shape}</g></svg>{escape(name)}</li>'
        )
    for source in sources:
        fill = "currentColor" if source == "measured" else "var(--page)"
        dash = f' stroke-dasharray="{DASHES[source]}"' if DASHES[source] else ""
        out.append(
            f'<li class="source"><svg width="28" height="12" aria-hidden="true" style="color:var(--{source})"><path d="M1 6H27" stroke="currentColor" stroke-width="1.6"{dash}/>'
            f'<circle cx="14" cy="6" r="3.6" fill="{fill}" stroke="currentColor" stroke-width="1.2"/></svg><span class="tag {source}">{source}</span></li>'
        )
    return Markup(f'<ul class="legend">{"".join(out)}</ul>') if out else Markup("")


def swatches(entries: dict[str, str], words: dict[str, str]) -> Markup:
    """Legend of stacked bars: part -> name of the colour."""
    items = "".join(
        f'<li><span class="key" style="background:var(--{colour})"></span>{escape(words.get(part, part))}</li>'
        for part, colour in entries.items()
    )
    return Markup(f'<ul class="legend">{items}</ul>')
