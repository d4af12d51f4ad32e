"""Sample each row as plain decoding would, and keep the drafts that are the sampled tokens.

Step 3 of the cycle, for drafts that are chosen, not drawn. vLLM's sampler keys its noise by a
request's seed and the position, so each row yields the token that plain decoding would have there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

if TYPE_CHECKING:
    import numpy as np
    from vllm.v1.outputs import LogprobsTensors
