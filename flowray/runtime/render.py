"""Draw views: as rich renderables in terminals, as HTML in notebooks, as plain lines in pipes.

The HTML has no scripts, no classes and no colours of its own but for a few mid tones that can be read on white and on
black; everything else is inherited from the page. Every text is escaped: agents' names, prompts and error messages
come from anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from flowray.runtime.pictures import Cell, Line, Table, picture
from flowray.runtime.sentences import explain
from flowray.runtime.views import View

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

__all__ = ["explain", "html", "plain", "rich"]

_RICH = {"good": "green", "busy": "yellow", "bad": "red", "faint": "dim", "strong": "bold", "plain": ""}
_CSS = {
    "good": "color:#2a9d5c",
    "busy": "color:#b7811a",
    "bad": "color:#d64541",
    "faint": "opacity:.65",
    "strong": "font-weight:600",
    "plain": "",
}
_BAR_CELLS = 6
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_INHERIT = "color:inherit;background:none"
_BOX = f"font-family:ui-monospace,monospace;font-size:12.5px;line-height:1.5;{_INHERIT}"
_RULE = "border-bottom:1px solid rgba(128,128,128,.5);font-weight:400;opacity:.65"
_TD = f"padding:1px 14px 1px 0;border:none;vertical-align:top;text-align:{{}};{_INHERIT}"


def rich(view: View) -> RenderableType:
    """For rich's console; a view's `__rich__` calls it."""
    from rich.console import Group

    return Group(*(_rich_table(block) if isinstance(block, Table) else _rich_line(block) for block in picture(view)))


def html(view: View) -> str:
    """For notebooks; a view's `_repr_html_` calls it."""
    blocks = (_html_table(block) if isinstance(block, Table) else _html_line(block) for block in picture(view))
    return f'<div style="{_BOX}">{"".join(blocks)}</div>'


def plain(view: View) -> str:
    """For pipes and logs: one line for each thing, columns separated by two or more blanks, no colours, no borders."""
    lines: list[str] = []
    for block in picture(view):
        if isinstance(block, Line):
            lines.append("  ".join(printable(cell.text) for cell in block.cells if cell.text))
        else:
            lines += _plain_table(block)
    return "\n".join(lines)


def bar(share: float, cells: int = _BAR_CELLS) -> str:
    """A share of 0..1 as block characters."""
    eighths = round(max(0.0, min(1.0, share)) * cells * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(cells)


def printable(text: str) -> str:
    """The text without what a terminal would obey: an agent's error message must not move anybody's cursor."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _rich_text(cell: Cell) -> Text:
    from rich.text import Text

    if cell.bar is None:
        return Text(printable(cell.text), style=_RICH[cell.tone])
    return Text.assemble((bar(cell.bar), "yellow on grey30"), f" {cell.text}")


def _rich_line(line: Line) -> Text:
    from rich.text import Text

    return Text("  ").join(_rich_text(cell) for cell in line.cells)


def _rich_table(block: Table) -> RenderableType:
    """One grid for each section, all with the same widths, so that titles between them may be of any length."""
    from rich.console import Group
    from rich.text import Text

    widths = _widths(block)
    parts: list[RenderableType] = []
    for number, (title, rows) in enumerate(block.sections):
        name, colon, counts = printable(title).partition(": ")
        parts += [Text.assemble((name, "bold"), colon, (counts, "dim"))] if title else []
        header = [[Text(name, style="dim") for name in block.columns]] if block.header and not number else []
        parts.append(_rich_grid(block, widths, header + [[_rich_text(cell) for cell in row] for row in rows]))
    return Group(*parts)


def _rich_grid(block: Table, widths: list[int], rows: list[list[Text]]) -> RenderableType:
    from rich.table import Table as RichTable

    grid = RichTable.grid(padding=(0, 2, 0, 0))
    for name, width in zip(block.columns, widths, strict=True):
        fixed = None if name in block.flexible else width
        grid.add_column(justify="right" if name in block.right else "left", width=fixed, no_wrap=fixed is not None)
    for row in rows:
        grid.add_row(*row)
    return grid


def _widths(block: Table) -> list[int]:
    """Of each column: its longest text and, where there is one, the bar before it."""
    widths = [len(name) if block.header else 0 for name in block.columns]
    for row in block.rows():
        for number, cell in enumerate(row):
            widths[number] = max(widths[number], len(cell.text) + (_BAR_CELLS + 1 if cell.bar is not None else 0))
    return widths


def _html_cell(cell: Cell) -> str:
    style, text = _CSS[cell.tone], escape(cell.text)
    if "\n" in cell.text:
        style += ";white-space:pre-wrap"
    if cell.bar is not None:
        # A bar of the text's own colour, so that it is seen on any background.
        filled = round(100 * cell.bar)
        text = (
            '<span style="display:inline-block;width:48px;height:8px;border-radius:2px;margin-right:6px;'
            'border:1px solid;border-color:rgba(128,128,128,.6)">'
            f'<span style="display:block;width:{filled}%;height:8px;background:#b7811a"></span></span>{text}'
        )
    return f'<span style="{style.lstrip(";")}">{text}</span>' if style else text


def _html_line(line: Line) -> str:
    return f'<div style="margin:0 0 2px 0">{"&ensp;".join(_html_cell(cell) for cell in line.cells)}</div>'


def _html_table(block: Table) -> str:
    align = ["right" if name in block.right else "left" for name in block.columns]
    # Notebooks stripe and right-align the tables of data frames: everything that they set is set back here.
    out = [f'<table style="border-collapse:collapse;border:none;margin:2px 0 6px 0;font-size:inherit;{_INHERIT}">']
    for number, (title, rows) in enumerate(block.sections):
        if title:
            name, colon, counts = title.partition(": ")
            text = f'<span style="font-weight:600">{escape(name)}</span>{colon}{escape(counts)}'
            style = f"{_TD.format('left')};padding-top:4px"
            out.append(_html_row([f'<td colspan="{len(align)}" style="{style}">{text}</td>']))
        if block.header and not number:
            pairs = zip(align, block.columns, strict=True)
            out.append(_html_row(f'<th style="{_TD.format(a)};{_RULE}">{escape(n)}</th>' for a, n in pairs))
        for row in rows:
            styles = (_TD.format(a) + _wrap(n, block) for a, n in zip(align, block.columns, strict=True))
            out.append(_html_row(f'<td style="{s}">{_html_cell(c)}</td>' for s, c in zip(styles, row, strict=True)))
    return "".join([*out, "</table>"])


def _html_row(cells: Iterable[str]) -> str:
    return f'<tr style="{_INHERIT}">{"".join(cells)}</tr>'


def _wrap(column: str, block: Table) -> str:
    return "" if column in block.flexible else ";white-space:nowrap"


def _plain_table(block: Table) -> list[str]:
    columns = block.columns
    widths = [len(name) if block.header else 0 for name in columns]
    sections = [
        (title, [[" ".join(printable(cell.text).split()) for cell in row] for row in rows])
        for title, rows in block.sections
    ]
    for _, rows in sections:
        for row in rows:
            widths = [max(width, len(text)) for width, text in zip(widths, row, strict=True)]
    lines: list[str] = []
    for number, (title, rows) in enumerate(sections):
        lines += [printable(title)] if title else []
        lines += [_plain_row(columns, columns, widths, block.right)] if block.header and not number else []
        lines += [_plain_row(row, columns, widths, block.right) for row in rows]
    return lines


def _plain_row(row: Sequence[str], columns: Sequence[str], widths: Sequence[int], right: frozenset[str]) -> str:
    padded = (
        text.rjust(width) if name in right else text.ljust(width)
        for text, width, name in zip(row, widths, columns, strict=True)
    )
    return "  ".join(padded).rstrip()
