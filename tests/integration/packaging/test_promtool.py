"""Prometheus' own promtool reads the alert rules and the configuration.

No package of Python or npm has it, and Debian's is 19 MB. So the test is skipped where it is not
installed (CONTRIBUTING.md says how to get it). `tests/repo/test_monitoring.py` holds the same rules
to the metrics everywhere.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.integration.packaging.test_deploy import ROOT

pytestmark = pytest.mark.process

DEPLOY = ROOT / "deploy"
WITHIN_S = 60


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    """Run it, or skip the test."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    return subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=WITHIN_S, check=False
    )


def test_promtool_accepts_every_alert_rule_and_the_configuration() -> None:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    count = sum(len(group["rules"]) for group in groups)
    for what, file in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        said = promtool("check", what, str(DEPLOY / file))
        assert said.returncode == 0, said.stdout + said.stderr
        assert f"SUCCESS: {count} rules found" in said.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("== 0", "= 0"),
        ("for: 2m", "for: two minutes"),
        ("expr:", "exp:"),
        ("{{ $labels.instance }}", "{{ $label.instance }}"),
    ],
)
def test_promtool_refuses_a_wrong_rule(tmp_path: Path, right: str, wrong: str) -> None:
    broken = tmp_path / "alerts.yml"
    broken.write_text((DEPLOY / "alerts.yml").read_text().replace(right, wrong, 1))
    assert promtool("check", "rules", str(broken)).returncode != 0
