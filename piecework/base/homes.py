"""Where each role keeps its files when nobody chose a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import platformdirs

HOME_VARIABLE: Final = "PIECEWORK_HOME"


def default_home(role: str, environment: Mapping[str, str] | None = None) -> Path:
    """Return $PIECEWORK_HOME/ROLE if the variable is set, else the platform's data folder."""
    chosen = (os.environ if environment is None else environment).get(HOME_VARIABLE)
    return Path(chosen) / role if chosen else platformdirs.user_data_path("piecework") / role
