"""The rules of a canvas: what can be checked of it without the model (clause 7.5). Pure.

`check` takes the job, its receipts and what is open of the trace. It returns a finding for each
rule that is broken. Nothing here needs torch or numpy, and each rule gives the same answer on every
machine.
"""

from __future__ import annotations

from piecework_protocol.rules.case import Case, Vocabulary
from piecework_protocol.rules.check import check
from piecework_protocol.rules.findings import Finding, RuleNumber

__all__ = ["Case", "Finding", "RuleNumber", "Vocabulary", "check"]
