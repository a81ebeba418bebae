"""kill -9 as an exception: raised at a counted point, it ends one life of a simulated worker."""

from __future__ import annotations


class Killed(BaseException):
    """The process is gone."""


class KillSwitch:
    """Counts the points at which a process could die, and dies at the chosen one (0 for never)."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.passed = 0
        self.dead = False

    def point(self) -> None:
        """A place between two effects."""
        if self.dead:
            raise Killed
        self.passed += 1
        if self.at and self.passed >= self.at:
            self.dead = True
            raise Killed
