"""At temperature 1 the next tokens follow the target's distribution."""

from collections import Counter
from importlib import import_module

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from torch.nn.functional import one_hot
from transformers import LlamaForCausalLM
from vllm import SamplingParams
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from tests import runner_v2
from tests.engine.engines import close, counts, make_llm, make_self_llm, runner

VOCAB_SIZE = 8
"""Few enough to count every continuation."""
NUM_SAMPLES = 256 if runner_v2.is_chosen() else 1500
"""Fewer on V2, whose kernels run under Triton's interpreter."""
BATCH_SIZE = 256 if runner_v2.is_chosen() else 64
NUM_TOKENS = 3
"""Number of compared tokens. The first comes with the prompt; the next two are accepted drafts,
recovered or bonus tokens."""
FIRST_COMPARED = 1 if runner_v2.is_chosen() else 0
"""Of the compared tokens. Few samples tell more in fewer cells, and the first is never drafted."""
MAX_TOKENS = NUM_TOKENS + 2
"""No draft follows the last token: with fewer tokens, the compared ones would rarely be drafted."""
PROMPT = {"prompt_token_ids": [3, 1, 4, 1, 5]}
SAME, DIFFERENT = 1e-3, 1e-4 if runner_v2.is_chosen() else 1e-9
"""p-values: above SAME the distributions count as equal, below DIFFERENT as different."""


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(vocab_size=VOCAB_SIZE, late_scale=0.7, eos_token_id=7)


def continuations(llm, extra_args=(None,)) -> Counter:
    """Count each continuation over NUM_SAMPLES requests, which use `extra_args` in turn.

    They have no seeds, but the engine has one: a run repeats itself. Batches start together, or
    most steps would have a prompt, and resume from no exit state.
    """
    params = [
        SamplingParams(
            temperature=1,
            max_tokens=MAX_TOKENS,
            ignore_eos=True,
            extra_args=extra_args[i % len(extra_args)],
        )
        for i in range(NUM_SAMPLES)
    ]
    batches = (params[i : i + BATCH_SIZE] for i in range(0, NUM_SAMPLES, BATCH_SIZE))
    return Counter(
        tuple(output.outputs[0].token_ids[:NUM_TOKENS])
        for batch in batches
        for output in llm.generate([PROMPT] * len(batch), batch, use_tqdm=False)
    )


@torch.inference_mode()
def exact_probabilities(model: str) -> dict[tuple, float]:
    """Probability of each continuation of NUM_TOKENS tokens, by transformers."""
    target = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    continuations = torch.cartesian_prod(*[torch.arange(VOCAB_SIZE)] * NUM_TOKENS)
    prompt = torch.tensor(PROMPT["prompt_token_ids"]).expand(len(continuations), -1)
    logits = target(torch.cat([prompt, continuations], dim=1)).logits
    logprobs = logits[:, prompt.shape[1] - 1 : -1].double().log_softmax(dim=-1)
    chosen = logprobs.gather(2, continuations[:, :, None]).sum(dim=(1, 2)).exp()
    return dict(zip(map(tuple, continuations.tolist()), chosen.tolist(), strict=True))


def p_value(samples: Counter, probabilities: dict[tuple, float]) -> float:
    """Chi-square test of goodness of fit; continuations expected less than 5 times share a cell."""
    total = samples.total()
    compared: Counter = Counter()
    for tokens, probability in probabilities.items():
        compared[tokens[FIRST_COMPARED:]] += probability
    seen: Counter = Counter()
    for tokens, count in samples.items():
        seen[tokens[FIRST_COMPARED:]] += count
    cells: dict[tuple, list[float]] = {}
    for tokens, probability in compared.items():
        key = tokens if probability * total >= 5 else ("rare",)
        cell = cells.setdefault(key, [0.0, 0.0])
        cell[0] += seen[tokens]
        cell[1] += probability * total
    assert len(cells) >= 10
    return chisquare(*zip(*cells.values(), strict=True)).pvalue


@pytest.fixture(scope="module")
def probabilities(model):
    return exact_probabilities(model)


@pytest.mark.slow
def test_plain_samples_follow_the_distribution(model, probabilities):
    """The reference is the distribution from which vLLM samples without speculation."""
    llm = make_llm(model, max_num_seqs=BATCH_SIZE)
    samples = continuations(llm)
    close(llm)
    assert p_value(samples, probabilities) > SAME


def distort_draft_probs(its_runner, monkeypatch) -> None:
    """Give V1's rejection sampling wrong draft probabilities."""
    right = its_runner._drawn_from.take

    def wrong(req_ids, drafts):
        draft_probs = right(req_ids, drafts)
        return draft_probs if draft_probs is None else draft_probs.roll(1, dims=-1)

    monkeypatch.setattr(its_runner._drawn_from, "take", wrong)


def distort_draft_logits(its_runner, monkeypatch) -> None:
    """The same for V2's, which takes the logits of all requests' drafts, by slot."""
    right = its_runner.rejection_sampler

    def wrong(logits, input_batch, draft_logits=None, invalid_drafts=None):
        return right(logits, input_batch, draft_logits.roll(1, dims=-1), invalid_drafts)

    monkeypatch.setattr(its_runner, "rejection_sampler", wrong)


def accept_all_drafts(its_runner, monkeypatch) -> None:
    """Take drafts for sampled tokens."""
    on_v2 = runner_v2.is_chosen()
    verifier = import_module(f"layerskip_vllm.runner_v{1 + on_v2}.verifier")
    right = verifier.first_tokens

    def wrong_on_v1(sampled, drafts):
        sampled = sampled.clone()
        for row, draft in zip(sampled, drafts, strict=True):
            row[: len(draft)] = torch.tensor(draft)
        return right(sampled, drafts)

    def wrong_on_v2(sampled, tokens_before, cu_num_rows, max_num_rows):
        drafts = tokens_before.roll(-1).to(sampled.dtype)
        drafts[cu_num_rows[1:] - 1] = sampled[cu_num_rows[1:] - 1]
        return right(drafts, tokens_before, cu_num_rows, max_num_rows)

    monkeypatch.setattr(verifier, "first_tokens", wrong_on_v2 if on_v2 else wrong_on_v1)


MIXED = (None, {"layerskip": False}, None, {"num_speculative_tokens": 1}, None)
"""Rows with two, one and no drafts in a batch, each with its own probabilities."""


AUTO = [1, 3, 5]
"""Exits of `self:auto`, which a script switches."""


@pytest.fixture
def open_llm(model):
    """`open_llm(draft_sample_method)` -> an engine with room for many requests."""

    def open_llm(draft_sample_method, exit_layer=4):
        config = {"draft_sample_method": draft_sample_method}
        return make_self_llm(
            model, exit_layer, 2, max_num_seqs=BATCH_SIZE, speculative_config=config
        )

    return open_llm


@pytest.mark.parametrize(
    ("draft_sample_method", "extra_args", "exit_layer"),
    [
        pytest.param("greedy", (None,), 4),
        pytest.param("greedy", (None,), AUTO),
        pytest.param("probabilistic", (None,), 4, marks=pytest.mark.on_v2),
        pytest.param("probabilistic", (None,), AUTO),
        pytest.param("probabilistic", MIXED, 4, id="mixed"),
        pytest.param("probabilistic", MIXED, AUTO, id="mixed-auto"),
    ],
)
def test_samples_follow_the_targets_distribution(
    open_llm, probabilities, draft_sample_method, extra_args, exit_layer
):
    llm = open_llm(draft_sample_method, exit_layer)
    before = counts(llm)
    samples = continuations(llm, extra_args)
    counted = counts(llm).since(before)
    close(llm)
    assert 0.05 < counted.num_accepted / counted.num_drafted < 0.95
    assert counted.num_resumed > 0
    assert p_value(samples, probabilities) > SAME


@pytest.mark.parametrize(
    ("draft_sample_method", "extra_args"),
    [
        ("greedy", (None,)),
        ("probabilistic", (None,)),
        pytest.param("probabilistic", MIXED, id="mixed"),
    ],
)
def test_a_fault_of_verification_is_detected(
    open_llm, probabilities, monkeypatch, draft_sample_method, extra_args
):
    """It accepts wrong tokens."""
    llm = open_llm(draft_sample_method)
    distort = distort_draft_logits if runner_v2.is_chosen() else distort_draft_probs
    fault = accept_all_drafts if draft_sample_method == "greedy" else distort
    fault(runner(llm), monkeypatch)
    samples = continuations(llm, extra_args)
    close(llm)
    assert p_value(samples, probabilities) < DIFFERENT


def verify_by_rejection(its_runner, monkeypatch) -> None:
    """Accept a chosen draft d with probability p(d), by vLLM's rejection sampling."""
    if runner_v2.is_chosen():
        host = RejectionSampler._verify
        monkeypatch.setattr(type(its_runner.rejection_sampler), "_verify", host)
    else:

        def certain(_req_ids, drafts):
            token_ids = [token_id for draft in drafts for token_id in draft]
            return one_hot(torch.tensor(token_ids), VOCAB_SIZE).float() if token_ids else None

        monkeypatch.setattr(its_runner._drawn_from, "take", certain)


def test_as_many_drafts_are_accepted_as_by_rejection_sampling(model, monkeypatch):
    llm = make_self_llm(model, 4, 1, max_num_seqs=BATCH_SIZE)  # K = 1: each draft is a trial
    params = SamplingParams(temperature=1, max_tokens=24, ignore_eos=True)
    trials, num_requests = [], NUM_SAMPLES // 4
    for change in (lambda *_: None, verify_by_rejection):
        change(runner(llm), monkeypatch)
        before = counts(llm)
        llm.generate([PROMPT] * num_requests, params, use_tqdm=False)
        counted = counts(llm).since(before)
        trials.append((counted.num_accepted, counted.num_drafted - counted.num_accepted))
    close(llm)
    assert min(map(min, trials)) > num_requests
    assert chi2_contingency(trials).pvalue > SAME
