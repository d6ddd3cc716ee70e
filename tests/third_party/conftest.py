"""A table of what stood in for what in other people's tests, and how they ended."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = []
    for outcome, word in (
        ("passed", "passed"),
        ("xfailed", "cannot pass"),
        ("failed", "FAILED"),
        ("xpassed", "PASSED UNEXPECTEDLY"),
        ("error", "FAILED"),
    ):
        for report in terminalreporter.getreports(outcome):
            properties = dict(report.user_properties)
            if "theirs" in properties:
                seconds = f"{report.duration:.0f}"
                why = getattr(report, "wasxfail", "") if outcome == "xfailed" else ""
                rows.append((properties["theirs"], properties["replaced"], word, seconds, why))
    if rows:
        terminalreporter.section("third party")
        for row in (("test", "replaced", "result", "seconds", "why"), ("---",) * 5, *rows):
            terminalreporter.write_line("| " + " | ".join(row) + " |")
