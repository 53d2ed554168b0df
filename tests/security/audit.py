"""`python -m tests.security.audit`: known vulnerabilities of what is installed, by pip-audit. For `make audit`.

Fails when there is one. A database that cannot be asked is said and fails only with --strict: a
cluster without a way out must be able to build.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from typing import Any

COMMAND = ("--format", "json", "--progress-spinner", "off", "--path", sysconfig.get_paths()["purelib"])


def judge(report: dict[str, Any]) -> tuple[list[str], int, int]:
    """Vulnerable packages in words, how many were looked up, and how many nobody knew."""
    packages = report.get("dependencies", [])
    known = [package for package in packages if "skip_reason" not in package]
    words = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in known
        for found in package["vulns"]
    ]
    return words, len(known), len(packages) - len(known)


def main(arguments: list[str]) -> int:
    is_strict = "--strict" in arguments
    done = subprocess.run([sys.executable, "-m", "pip_audit", *COMMAND], capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(f"not audited: pip-audit gave no report\n{done.stderr.strip()[-500:]}", file=sys.stderr)
        return 1 if is_strict else 0
    words, known, unknown = judge(report)
    summary = f"{known} packages looked up, {len(words)} vulnerabilities; {unknown} could not be asked about"
    print("\n".join([*words, summary]))
    return 1 if words or (is_strict and unknown) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
