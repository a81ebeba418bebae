"""`piecework worker top`: the console on a terminal. It draws the panels that the page draws."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.css.query import NoMatches
from textual.widgets import DataTable, Footer, Label, Static

from piecework.base.text import one_line
from piecework_node.console.model import Snapshot
from piecework_node.console.panels import Panel, clock, panels
from piecework_node.daemon.admin import ask_daemon
from piecework_node.errors import AdminError

EVERY_S: Final = 1.0
MAX_CELL: Final = 200
"""Characters. A model's name is what somebody wrote."""
MOST_ROWS: Final = 16
"""Of a table at once. It scrolls."""


class PanelView(Vertical):
    """One panel: a title, and a table or a line. The cursor stays where it is when it changes."""

    DEFAULT_CSS = """
    PanelView { height: auto; margin: 0 1 1 1; }
    PanelView Label { text-style: bold; }
    PanelView DataTable { height: auto; }
    """

    def __init__(self, panel: Panel) -> None:
        super().__init__(id=panel.key)
        self._panel = panel

    def compose(self) -> ComposeResult:
        """A title, and what is below it."""
        yield Label(self._panel.title, markup=False)
        yield DataTable(show_header=any(self._panel.columns), cursor_type="row")
        yield Static(markup=False, classes="line")

    def on_mount(self) -> None:
        """Make the columns."""
        table = self._table
        table.styles.max_height = MOST_ROWS
        for column in self._panel.columns:
            table.add_column(column)
        self.show(self._panel)

    @property
    def _table(self) -> DataTable[str]:
        return self.query_one(DataTable)

    def show(self, panel: Panel) -> None:
        """Bring the table up to date."""
        table, place = self._table, self._table.cursor_coordinate
        table.clear()
        for row in panel.rows:
            table.add_row(*(_cell(panel, cell) for cell in row))
        table.display = bool(panel.rows)
        table.move_cursor(row=min(place.row, max(0, len(panel.rows) - 1)))
        line = panel.note if panel.rows else panel.empty
        below = self.query_one(".line", Static)  # a title is a Static too
        below.update(one_line(line, MAX_CELL))
        below.display = bool(line)


def _cell(panel: Panel, cell: str) -> str:
    """A cell on one line. Of a test job the end of a long text is shown, where it still grows."""
    if panel.key == "test" and len(cell) > MAX_CELL:
        return one_line("…" + cell[1 - MAX_CELL :], MAX_CELL)
    return one_line(cell, MAX_CELL)


class ConsoleApp(App[None]):
    """All panels in one column. Tab goes from table to table."""

    TITLE = "Piecework worker"
    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit"), ("d", "theme", "Dark or light")]
    CSS = "#said { margin: 0 1; }"

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home = home
        self._looks = asyncio.Lock()

    def compose(self) -> ComposeResult:
        """A line that says how fresh it is, and the panels."""
        yield Static("…", id="said", markup=False)
        yield VerticalScroll(id="panels", can_focus=False)
        yield Footer()

    def on_mount(self) -> None:
        """Ask at once, and every second."""
        self.refresh_panels()
        self.set_interval(EVERY_S, self.refresh_panels)

    def action_theme(self) -> None:
        """Change between dark and light."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"

    @work
    async def refresh_panels(self) -> None:
        """Ask the worker, and show what it says. A worker that is gone leaves the last tables.

        A look that is due while the last one goes on is left out. Breaking that one off would leave
        panels without their tables.
        """
        if self._looks.locked():
            return
        async with self._looks:
            # On a slow machine a panel may not be drawn yet, or the window may be closing.
            with suppress(NoMatches):
                await self._look()

    async def _look(self) -> None:
        said = self.query_one("#said", Static)
        try:
            body = await ask_daemon(self._home, "GET", "/console/data")
            shown = Snapshot.from_json(body)
        except (AdminError, ValueError) as error:
            said.update(one_line(f"not live: {error}", MAX_CELL))
            return
        said.update(f"{shown.state}, as of {clock(shown.at)} UTC")
        place = self.query_one("#panels", VerticalScroll)
        for panel in panels(shown):
            found = place.query(f"#{panel.key}")
            if found:
                found.first(PanelView).show(panel)
            else:
                await place.mount(PanelView(panel))
