"""Checks of what a reader writes in a lesson: one file per subject; importing this package registers them all."""

from pai_lab.checks import allocation, criteria, masks, scorers, structures  # noqa: F401
from pai_lab.checks.watch import check, checks

__all__ = ["check", "checks"]
