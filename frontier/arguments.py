"""Command-line parsing with the project's manners: one line for a mistake, and no option under half its name."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from frontier.errors import UserError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose mistakes are a `UserError` instead of a page of usage. Abbreviated options are refused: which ones were
    given must be plain, since they win over a config's.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the options")
