"""Sampling and verification: `verifier.py` of both runners, and V1's modules that lay out rows."""

from tests.unit.contract.expectations import Calls, Has, Reads, Sets, Takes
from tests.unit.contract.runner_v1 import INPUT_BATCH, RUNNER
from tests.unit.contract.runner_v2 import GPU, RUNNER_V2

SAMPLE = "vllm.v1.sample"

V1 = (
    Takes(
        f"{SAMPLE}.sampler:Sampler.forward",
        "Samples the rows of a step.",
        positional=("logits", "sampling_metadata", "predict_bonus_token"),
    ),
    *(
        Reads(
            f"{SAMPLE}.ops.topk_topp_sampler:{function}",
            "Draws for a row before it asks for the next; in between, we save the generator state.",
            ("generators.items()",),
        )
        for function in ("random_sample", "TopKTopPSampler.forward_cpu")
    ),
    Has(
        f"{SAMPLE}.metadata:SamplingMetadata",
        "Copied with one entry for each row.",
        (
            *("temperature", "top_p", "top_k", "generators", "all_greedy", "max_num_logprobs"),
            *("no_penalties", "prompt_token_ids", "frequency_penalties", "presence_penalties"),
            *("repetition_penalties", "output_token_ids", "allowed_token_ids_mask"),
            *("bad_words_token_ids", "logitsprocs", "logprob_token_ids", "spec_token_ids"),
            "thinking_budget_state_holder",
        ),
    ),
    Takes(
        f"{SAMPLE}.logits_processor:build_logitsprocs",
        "Makes the processors of plain decoding; we run them on rows.",
        positional=("vllm_config", "device", "is_pin_memory", "is_pooling_model"),
    ),
    Takes(
        f"{SAMPLE}.logits_processor:BatchUpdate",
        "Shows each step's rows to the processors.",
        positional=("batch_size", "removed", "added", "moved"),
    ),
    Has(f"{SAMPLE}.logits_processor:LogitsProcessors", "Lists them all.", properties=("all",)),
    Has(
        f"{SAMPLE}.thinking_budget_state:ThinkingBudgetStateHolder",
        "We call it with requests; the sampler would call it with rows.",
        ("has_tracked_requests", "update_state", "apply_to_logits"),
    ),
    *(
        Reads(
            f"{SAMPLE}.sampler:Sampler.apply_logits_processors",
            "Calls our stand-in for the holder of thinking budgets.",
            (expression,),
        )
        for expression in ("holder.has_tracked_requests()", "holder.update_state")
    ),
    Takes(
        f"{SAMPLE}.rejection_sampler:rejection_sample",
        "Verifies drawn drafts, on logits that the plain sampler has processed.",
        positional=(
            *("draft_token_ids", "num_draft_tokens", "max_spec_len", "cu_num_draft_tokens"),
            *("draft_probs", "target_logits", "bonus_token_ids", "sampling_metadata"),
        ),
        keyword=("use_fp64_gumbel",),
    ),
    Takes(
        f"{SAMPLE}.sampler:Sampler.sample",
        "In mode `processed_logits`, returns the logits from which it samples.",
        positional=("logits", "sampling_metadata"),
    ),
    *(
        Takes(f"{SAMPLE}.sampler:Sampler.{name}", "Computes logprobs where drafts are drawn.")
        for name in ("compute_logprobs", "gather_logprobs", "gather_specific_token_logprobs")
    ),
    Has("vllm.v1.outputs:LogprobsTensors", "We put it in the order of requests."),
    Reads(
        f"{RUNNER}._bookkeeping_sync",
        "Takes back draws by generator offset, which CPU generators lack; we hide the generators.",
        ("self.input_batch.generators.get(int(i))", "gen.get_offset()"),
    ),
    Sets(
        f"{INPUT_BATCH}.__init__",
        "The drafts that a step verifies, and each seeded request's generator, by row.",
        ("spec_token_ids", "generators"),
    ),
)

REJECTION_SAMPLER = f"{GPU}.spec_decode.rejection_sampler:RejectionSampler"
VERIFY = (
    *("logits", "draft_logits", "draft_sampled", "pos", "cu_num_logits", "idx_mapping"),
    *("idx_mapping_np", "expanded_idx_mapping", "expanded_local_pos", "seq_lens_upper_bound_np"),
)

V2 = (
    Takes(
        f"{GPU}.model_states.interface:ModelState.custom_sampler",
        "Overridden: gives the runner our verifier.",
        positional=("sampler",),
    ),
    Calls(
        f"{RUNNER_V2}.load_model",
        "Replaces the runner's samplers with ours.",
        "self.model_state.custom_sampler",
        num_positional=1,
    ),
    Takes(
        f"{REJECTION_SAMPLER}._verify",
        "Overridden: samples each row plainly; the original verifies drawn drafts.",
        positional=(*VERIFY, "verify_draft_sampled"),
    ),
    Calls(
        f"{REJECTION_SAMPLER}._verify_in_chunks",
        "Calls ours for parts of a batch.",
        "self._verify",
        num_positional=11,
    ),
    Takes(
        f"{REJECTION_SAMPLER}._get_logprobs_tensors",
        "Overridden for `logprob_token_ids`; called right after `_verify` of the same rows.",
        positional=(
            *("sampled", "num_sampled", "logits", "cu_num_logits", "cu_num_logits_np"),
            "max_num_logprobs",
        ),
    ),
    Takes(
        f"{GPU}.sample.sampler:Sampler.sample",
        "Samples the rows of a step.",
        positional=(
            *("logits", "expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "pos"),
            *("input_ids", "expanded_local_pos", "seq_lens_upper_bound_np", "return_logprobs"),
        ),
    ),
    Takes(
        f"{GPU}.sample.sampler:Sampler.get_logprobs_dims",
        "Shows which logprobs a batch requests.",
        positional=("idx_mapping_np",),
    ),
    Takes(
        f"{GPU}.sample.logprob:compute_topk_scores",
        "Gathers logprobs where a request names tokens.",
        positional=("logits", "num_logprobs", "sampled_token_ids", "cu_num_logits"),
        keyword=(
            *("logprob_token_ids_state", "expanded_idx_mapping", "max_per_req_token_ids"),
            "logits_mode",
        ),
    ),
)

EXPECTATIONS = (*V1, *V2)
