"""Findings as paragraphs: what is so, why it matters, how to mend it."""

from __future__ import annotations

from collections.abc import Iterable

from engine.findings import Finding, Severity, for_forms

MARKS = {Severity.ERROR: "✗", Severity.WARNING: "!", Severity.INFO: "·"}
STYLES = {Severity.ERROR: "bad", Severity.WARNING: "warning", Severity.INFO: "text"}


def finding_parts(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    """The findings as (text, style), each with its reason and its fix."""
    parts: list[tuple[str, str]] = []
    for finding in findings:
        parts.append((f"{MARKS[finding.severity]} {finding.what}", STYLES[finding.severity]))
        parts += [(f"  {finding.why}", "muted")] if finding.why else []
        parts += [(f"  → {for_forms(finding.fix)}", "text")] if finding.fix else []
    return parts


def forbids(findings: Iterable[Finding]) -> bool:
    """True when one of them makes a start pointless."""
    return any(finding.severity is Severity.ERROR and not finding.ignorable for finding in findings)


def worst_text(findings: Iterable[Finding], most: int = 3) -> str:
    """The errors and warnings in a few lines, for a dialog."""
    bad = [finding for finding in findings if finding.severity is not Severity.INFO]
    lines = [f"{MARKS[f.severity]} {f.what}" + (f" → {for_forms(f.fix)}" if f.fix else "") for f in bad[:most]]
    if len(bad) > most:
        lines.append(f"and {len(bad) - most} more: see the review in the set-up, or gptoss doctor")
    return "\n".join(lines)
