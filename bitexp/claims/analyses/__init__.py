"""How runs answer a question, by the word in the file of claims: a class in a file of this folder each."""

from bitexp.claims.analyses.base import ANALYSES, Analysis, Answer, Evidence, Finding
from bitexp.common.registry import load_modules

load_modules(__name__, __path__)

__all__ = ["ANALYSES", "Analysis", "Answer", "Evidence", "Finding"]
