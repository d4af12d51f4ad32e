"""Two tenants in one batch: neither is affected by whether or how well the other drafts."""

from dataclasses import dataclass

import pytest
import torch

from layerskip_vllm.measure.engine import scheduler
from tests.engine.engines import (
    as_prompts,
    close,
    generate,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
    runner,
)
from tests.engine.stepped import batching_difference, known_sequences, script

K, MAX_TOKENS, NUM_LOGPROBS = 4, 40, 3
LOGPROB_TOLERANCE = 1e-4
"""Allowed difference of log-probabilities if stock vLLM's also depend on the batch.

The number of rows in a batch can change the kernel and its order of summation. If stock vLLM's
results are bit-identical in small and large batches, ours must be too.
"""


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(num_layers=6, late_scale=0.3)


@pytest.fixture(scope="module")
def tenants():
    """Prompts of tenants A and B with a common prefix, two blocks of which share memory."""
    (shared,) = random_prompts([70], seed=21)
    tails = random_prompts([3, 17, 33, 5, 9, 40, 12], seed=22)
    prompts = [shared + tail for tail in tails]
    return prompts[:3], prompts[3:]


@pytest.fixture(scope="module")
def plain_outputs(model, tenants):
    """Outputs of stock vLLM for A and for B."""
    llm = make_llm(model)
    outputs = [generate(llm, as_prompts(p), greedy(MAX_TOKENS, ignore_eos=True)) for p in tenants]
    close(llm)
    return outputs


@pytest.fixture(scope="module")
def logprob_tolerance(model):
    """0 if stock vLLM's KV shows that rows do not depend on each other."""
    sequences = known_sequences(model, random_prompts([5, 33, 70, 18], seed=23), 24)
    return LOGPROB_TOLERANCE if batching_difference(model, sequences) else 0.0


@dataclass
class Seen:
    """Everything that the client of one request sees."""

    token_ids: list[int]
    logprobs: torch.Tensor  # [num_tokens, NUM_LOGPROBS]
    top_ids: list[list[int]]  # by rank
    num_cached_tokens: int
    drafts: tuple[list[int], list[int]]  # drafted and accepted, step by step

    @classmethod
    def of(cls, output) -> "Seen":
        (choice,) = output.outputs
        ranked = [sorted(at.items(), key=lambda item: item[1].rank) for at in choice.logprobs]
        top = [at[:NUM_LOGPROBS] for at in ranked]
        metrics = choice.spec_decode_metrics
        return cls(
            list(choice.token_ids),
            torch.tensor([[entry.logprob for _, entry in at] for at in top]),
            [[token_id for token_id, _ in at] for at in top],
            output.num_cached_tokens,
            (metrics.per_step_drafted, metrics.per_step_accepted),
        )


class Batch:
    """An engine in which the test decides B's drafts, and the model A's."""

    def __init__(self, llm, tenants, plain_outputs) -> None:
        self.engine, self.tenants = llm.llm_engine, tenants
        self._of_b: dict[str, list[int]] = {}
        self._num_right: int | None = None
        self._drafts_allowed = True
        self._b_sequences = [p + o for p, o in zip(tenants[1], plain_outputs[1], strict=True)]
        self._script = script(runner(llm), self._target_token)
        self._take_drafts = scheduler(llm).update_draft_token_ids
        scheduler(llm).update_draft_token_ids = self._take_drafts_of_some

    def _target_token(self, req_id: str, position: int) -> int:
        token_ids = self._of_b[req_id]
        return token_ids[min(position, len(token_ids) - 1)]

    def _take_drafts_of_some(self, drafts) -> None:
        drafts.draft_token_ids = [
            [] if req_id in self._of_b and not self._drafts_allowed else token_ids
            for req_id, token_ids in zip(drafts.req_ids, drafts.draft_token_ids, strict=True)
        ]
        self._take_drafts(drafts)

    def run(self, num_right: int | None, drafts_allowed: bool = True) -> list[Seen]:
        """Decode both tenants' prompts side by side; returns what A sees."""
        assert self.engine.reset_prefix_cache()
        self._of_b.clear()
        self._drafts_allowed = drafts_allowed
        params = greedy(MAX_TOKENS, ignore_eos=True, logprobs=NUM_LOGPROBS)
        for i, prompt in enumerate(self.tenants[0]):
            self.engine.add_request(f"a{i}", {"prompt_token_ids": prompt}, params)
        for i, prompt in enumerate(self.tenants[1]):
            inner_id = self.engine.add_request(f"b{i}", {"prompt_token_ids": prompt}, params)
            self._of_b[inner_id] = self._b_sequences[i]
        finished = {}
        while self.engine.has_unfinished_requests():
            script = {} if num_right is None else dict.fromkeys(self._of_b, num_right)
            self._script.begin_step(script)
            for output in self.engine.step():
                if output.finished:
                    finished[output.request_id] = output
        assert self._script.faults == []
        return [Seen.of(finished[f"a{i}"]) for i in range(len(self.tenants[0]))]


@pytest.fixture(scope="module")
def batch(model, tenants, plain_outputs, logprob_tolerance):
    llm = make_self_llm(model, 4, K, per_request_spec_decode_metrics="detailed")
    yield Batch(llm, tenants, plain_outputs)
    close(llm)


@pytest.fixture(scope="module")
def beside_plain_decoding(batch):
    """What A sees while B does not draft."""
    return batch.run(None, drafts_allowed=False)


@pytest.mark.parametrize(
    "num_right", [None, 0, 2, K], ids=["as it comes", "all wrong", "half right", "all right"]
)
def test_a_tenant_does_not_see_how_the_other_drafts(
    batch, beside_plain_decoding, plain_outputs, logprob_tolerance, num_right, record_property
):
    seen = batch.run(num_right)
    largest = 0.0
    for now, before, plain in zip(seen, beside_plain_decoding, plain_outputs[0], strict=True):
        assert now.token_ids == before.token_ids == plain
        assert now.num_cached_tokens == before.num_cached_tokens
        assert now.drafts == before.drafts
        assert sum(now.drafts[0]) > 0
        assert now.top_ids == before.top_ids
        largest = max(largest, float((now.logprobs - before.logprobs).abs().max()))
    record_property("largest difference of a log-probability", largest)
    assert largest <= logprob_tolerance


def test_rows_barely_depend_on_the_row_count(model, record_property):
    """Checks each of the model's matrix products with 1 to 64 rows, the source of differences."""
    llm = make_llm(model)
    decoder = runner(llm).model
    first = decoder.model.layers[0]
    products = {
        "qkv": first.self_attn.qkv_proj,
        "output": first.self_attn.o_proj,
        "gate and up": first.mlp.gate_up_proj,
        "down": first.mlp.down_proj,
        "LM head": decoder.lm_head,
    }
    generator = torch.Generator().manual_seed(0)
    for name, layer in products.items():
        width = 384 if name == "down" else 128
        rows = torch.randn(64, width, generator=generator)
        with torch.inference_mode():
            whole = layer.quant_method.apply(layer, rows)
            parts = {m: layer.quant_method.apply(layer, rows[:m].clone()) for m in range(1, 65)}
        differing = [m for m, part in parts.items() if not torch.equal(part, whole[:m])]
        record_property(f"{name}: row counts whose rows are not those of 64", differing)
        for m, part in parts.items():
            torch.testing.assert_close(part, whole[:m], rtol=1e-5, atol=1e-5)
    close(llm)
