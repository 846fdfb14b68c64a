"""A linear layer whose rows do not depend on each other's number, and the mode that uses it.

To be read in this order: ``api`` (what is computed), ``mode`` (batch-invariant mode), ``ops`` (the operator and its
definition on a CPU), ``kernels`` (Triton), ``launch`` (tiles), ``compile_cases`` (what is compiled for every chip).
"""

from .api import linear as linear
from .mode import batch_invariant as batch_invariant
from .mode import is_batch_invariant as is_batch_invariant
