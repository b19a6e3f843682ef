"""Validation of a potential: what a user must know before trusting it, measured and put on one page."""

from egnn_md.validation.card import write_card
from egnn_md.validation.request import PARTS, ValidateRequest
from egnn_md.validation.runs import InterruptedRun
from egnn_md.validation.validate import Validation, validate

__all__ = ["PARTS", "InterruptedRun", "ValidateRequest", "Validation", "validate", "write_card"]
