"""Sections under a clock that moves only when a section says so."""

from __future__ import annotations

from dataclasses import dataclass

from bench.sections import Budget, Sections


@dataclass
class Clock:
    """Seconds that pass by hand."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> dict[str, float]:
        """A measurement of that length."""
        self.now += seconds
        return {"figure": seconds}

    def breaks(self) -> dict[str, float]:
        """A measurement that fails after a second."""
        self.now += 1
        raise RuntimeError("no kernel image\nand a long trace")


def test_a_section_that_fails_is_named_with_its_error_and_the_next_one_runs() -> None:
    clock = Clock()
    sections = Sections(Budget(60, clock))
    assert not sections.run("broken", 5, clock.breaks)
    assert sections.run("sound", 5, lambda: clock.takes(2))
    assert sections.results == {
        "broken": {"status": "failed", "error": "RuntimeError: no kernel image", "seconds": 1},
        "sound": {"status": "ok", "seconds": 2, "figure": 2},
    }


def test_a_section_that_would_not_fit_is_left_out_with_both_figures_and_a_shorter_one_runs() -> (
    None
):
    clock = Clock()
    sections = Sections(Budget(60, clock))
    sections.run("long", 50, lambda: clock.takes(50))
    assert not sections.run("longer", 11, lambda: clock.takes(11))
    assert sections.run("short", 10, lambda: clock.takes(10))
    assert sections.results["longer"] == {
        "status": "skipped",
        "reason": "needs about 11 s, 10 s are left",
    }
    assert sections.budget.left_s == 0


def test_an_overdrawn_budget_leaves_no_less_than_nothing() -> None:
    clock = Clock()
    sections = Sections(Budget(60, clock))
    sections.run("slow", 5, lambda: clock.takes(90))
    sections.run("next", 1, lambda: clock.takes(1))
    assert sections.results["next"]["reason"] == "needs about 1 s, 0 s are left"
