"""What `make audit` makes of pip-audit's report."""

from __future__ import annotations

from tests.security.audit import judge

REPORT = {
    "dependencies": [
        {"name": "good", "version": "1", "vulns": []},
        {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "description": "…"}]},
        {"name": "ours", "skip_reason": "not on the index"},
    ],
    "fixes": [],
}


def test_vulnerabilities_are_told_from_what_could_not_be_asked() -> None:
    assert judge(REPORT) == (["bad 2: PYSEC-1, mended in 2.1"], 2, 1)
    assert judge({}) == ([], 0, 0)
