"""Names that `runner.py` still imports; the repair is `compat/worker/logit_bias.py`."""

from vllm.v1.sample.rejection_sampler import RejectionSampler as LayerSkipRejectionSampler

__all__ = ["LayerSkipRejectionSampler", "biases_drafts_itself"]


def biases_drafts_itself() -> bool:
    """True: the worker has installed the repair, or vLLM needs none."""
    return True
