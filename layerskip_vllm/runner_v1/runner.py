"""What a V1 model runner of vLLM's does differently under self-speculation."""

from __future__ import annotations

import dataclasses
import socket
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorStats
from vllm.distributed.parallel_state import get_tp_group
from vllm.utils.torch_utils import PIN_MEMORY
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.outputs import ECConnectorOutput, SamplerOutput
from vllm.v1.sample.logits_processor.builtin import LogitBiasLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from layerskip_vllm.config import OPTIONS_KEY, max_drafts_of
from layerskip_vllm.runner_v1.adapters import AdapterSwitchMixin
from layerskip_vllm.runner_v1.agreement import with_first_rank
from layerskip_vllm.runner_v1.proposer import LayerSkipProposer
from layerskip_vllm.runner_v1.sampling import LayerSkipRejectionSampler, biases_drafts_itself
from layerskip_vllm.scheduling.health import AcceptanceMonitor
from layerskip_vllm.scheduling.policy import DraftPolicy
from layerskip_vllm.spec_decode.exit_query_cache import ExitQueryEntries
from layerskip_vllm.spec_decode.plan import DraftSchedule, ResumePlan
from layerskip_vllm.telemetry import StepStats
from layerskip_vllm.version import __version__

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput


class LayerSkipRunnerMixin(AdapterSwitchMixin):
    """Put before a subclass of vLLM's `GPUModelRunner` (`vllm/v1/worker/gpu_model_runner.py`).

    The overridden methods call the original; two replace a decision, `propose_draft_token_ids` and
    `_input_fits_in_drafter`, and two leave work out in some steps, `_model_forward` and `_sample`.
    """

    drafter: LayerSkipProposer

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        require_same_version(vllm_config.speculative_config.package_version)
        super().__init__(vllm_config, device)
        self.drafter = LayerSkipProposer(vllm_config, device)
        self.drafter.adapters_of = self.adapters_of
        if not biases_drafts_itself():
            self.rejection_sampler = LayerSkipRejectionSampler(
                self.sampler, vllm_config.speculative_config, device
            )
            # vLLM leaves it out under speculation, as its own rejection sampler cannot serve it.
            self.input_batch.logitsprocs.non_argmax_invariant.append(
                LogitBiasLogitsProcessor(vllm_config, device, PIN_MEMORY)
            )
        layerskip = vllm_config.speculative_config.layerskip
        self.acceptance = AcceptanceMonitor(layerskip)
        self.policy = DraftPolicy(layerskip, with_first_rank(get_tp_group()))
        self.num_resumed_tokens = 0
        self._step_stats = StepStats(0)
        self._exit_entries = ExitQueryEntries()
        self._continuing_req_ids: set[str] = set()
        self._common_attn_metadata: CommonAttentionMetadata | None = None

    def execute_model(self, scheduler_output: SchedulerOutput, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Let the last step's exit states live for this step only, even if it runs no forward.

        A request that is new, or resumed from preemption, has blocks into which its drafts' early
        KV was never written; it must not resume, whatever its tokens.
        """
        self._step_stats = StepStats(scheduler_output.total_num_scheduled_tokens)
        self._exit_entries = self.drafter.exit_query_cache.take()
        cached = scheduler_output.scheduled_cached_reqs
        self._continuing_req_ids = set(cached.req_ids) - set(cached.resumed_req_ids)
        return super().execute_model(scheduler_output, *args, **kwargs)

    def _build_attention_metadata(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Keep the batch's common metadata, from which the early layers' is cut."""
        attn_metadata, common_attn_metadata = super()._build_attention_metadata(*args, **kwargs)
        self._common_attn_metadata = common_attn_metadata
        return attn_metadata, common_attn_metadata

    def _model_forward(  # type: ignore[no-untyped-def]
        self,
        input_ids=None,
        positions=None,
        intermediate_tensors=None,
        inputs_embeds=None,
        **kwargs,
    ):
        """Verify from the exit states where there are any, by the full forward where not.

        Where prompts may be embeddings, vLLM embeds all tokens itself and gives no `input_ids`.
        """
        plan = self._plan_resume()
        if plan is None:
            return super()._model_forward(
                input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
            )
        self._step_stats.num_resumed_tokens = plan.num_resumed_tokens
        self.num_resumed_tokens += plan.num_resumed_tokens
        return self.drafter.verify(
            plan.to(self.device), input_ids, positions, inputs_embeds, self._common_attn_metadata
        )

    def _plan_resume(self) -> ResumePlan | None:
        if not self._exit_entries.req_ids:
            return None
        num_reqs = self.input_batch.num_reqs
        query_lens = np.diff(self.query_start_loc.np[: num_reqs + 1])
        num_computed = self.input_batch.num_computed_tokens_cpu[:num_reqs]
        width = self.drafter.exit_query_cache.width
        offsets = np.arange(width)
        columns = np.minimum(num_computed[:, None] + offsets, self.max_model_len - 1)
        token_ids = np.take_along_axis(self.input_batch.token_ids_cpu[:num_reqs], columns, axis=1)
        cache_rows, num_resumed = self._exit_entries.match(
            [r if r in self._continuing_req_ids else None for r in self.input_batch.req_ids],
            num_computed,
            np.where(offsets < query_lens[:, None], token_ids, -1),
        )
        if not num_resumed.any():
            return None
        return ResumePlan.from_schedule(query_lens, num_resumed, cache_rows, width)

    def _input_fits_in_drafter(self, common_attn_metadata: CommonAttentionMetadata | None) -> bool:
        """Whether to draft at all. How far each request may is decided request by request, so one
        near `max_model_len` does not stop the others as vLLM's own test would.
        """
        return common_attn_metadata is not None

    def _sample(
        self, logits: torch.Tensor | None, spec_decode_metadata: SpecDecodeMetadata | None
    ) -> SamplerOutput:
        """Sample plainly where nothing is verified: vLLM's rejection sampler fails without rows."""
        if spec_decode_metadata is None or any(spec_decode_metadata.num_draft_tokens):
            return super()._sample(logits, spec_decode_metadata)
        # With top-k (`apply_top_k_only`) it takes the maximum of an empty tensor. Each row is a
        # bonus token's: that is what the processors that look at drafts must know.
        return self.sampler(
            logits=logits,
            sampling_metadata=self.input_batch.sampling_metadata,
            predict_bonus_token=True,
        )

    def sample_tokens(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Let the step's numbers travel with its tokens, in the place of a connector's stats.

        vLLM has no other way from a worker to the server's metrics. The connector is an encoder
        cache's, and `self:E` serves no model that has one.
        """
        output = super().sample_tokens(*args, **kwargs)
        if output.req_ids:  # where nothing ran, the output is one that all steps share
            stats = ECConnectorStats({OPTIONS_KEY: self._step_stats.as_dict()})
            output.ec_connector_output = ECConnectorOutput(ec_connector_stats=stats)
        return output

    def propose_draft_token_ids(
        self,
        scheduler_output: SchedulerOutput,
        sampled_token_ids: torch.Tensor,  # [num_reqs, max_num_sampled], int32, -1 where rejected
        sampling_metadata: SamplingMetadata,
        hidden_states: torch.Tensor,
        sample_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        spec_decode_metadata: SpecDecodeMetadata,
        common_attn_metadata: CommonAttentionMetadata,
        slot_mappings: object,
    ) -> list[list[int]]:
        """Draft for every request with a new token; the lists' lengths differ."""
        # Reading the tokens waits for the device, so the policy's clock hears of work that is done.
        sampled = sampled_token_ids.cpu().numpy()
        # Ids beyond the vocabulary count as rejected, as in RejectionSampler.parse_output.
        sampled = np.where(sampled < self.input_batch.vocab_size, sampled, -1)
        num_verified = np.array(spec_decode_metadata.num_draft_tokens)
        self._step_stats.sampled(int(num_verified.sum()))
        self._observe(sampled, num_verified)
        is_decoding = ~self.discard_request_mask.np[: len(sampled)]  # not amid a prompt
        limits = self._draft_limits(scheduler_output.num_spec_tokens_to_schedule, sampled)
        limits = np.minimum(limits, self.policy.num_drafts(limits[is_decoding])) * is_decoding

        drafts: list[list[int]] = [[] for _ in limits]
        self._draft_probs = self._draft_prob_req_ids = None
        schedule = self._schedule_drafts(limits, sampled, num_verified)
        if len(schedule.rows) == 0:
            return drafts
        rows = torch.from_numpy(schedule.rows).to(self.device)
        proposed = self.drafter.propose_drafts(
            schedule,
            [self.input_batch.req_ids[row] for row in schedule.rows],
            common_attn_metadata.block_table_tensor[rows],
            _of_rows(sampling_metadata, rows),
        )
        self._step_stats.drafted()
        self.policy.proposed(proposed)
        for i, row in enumerate(schedule.rows):
            drafts[row] = proposed.submitted(i)
        if proposed.sampling_probs is not None:
            self._draft_probs = proposed.sampling_probs
            self._draft_prob_req_ids = proposed.req_ids
        return drafts

    def _observe(
        self,
        sampled: np.ndarray,  # [num_reqs, max_num_sampled], -1 where rejected
        num_verified: np.ndarray,  # [num_reqs], drafts that the step verified
    ) -> None:
        num_reqs = self.input_batch.num_reqs
        query_lens = np.diff(self.query_start_loc.np[: num_reqs + 1])
        is_decode = (query_lens == num_verified + 1).all() and self._continuing_req_ids.issuperset(
            self.input_batch.req_ids
        )
        self.policy.verified(
            self.input_batch.req_ids,
            self.input_batch.num_computed_tokens_cpu[:num_reqs],
            sampled,
            num_rows=int(query_lens.sum()) if is_decode else None,
        )
        if get_tp_group().is_first_rank:  # the others would say the same
            self.acceptance.observe(
                num_drafted=int(num_verified.sum()),
                num_accepted=int((sampled[num_verified > 0, 1:] >= 0).sum()),
            )

    def _draft_limits(
        self,
        num_speculative_tokens: int,
        sampled: np.ndarray,  # [num_reqs, max_num_sampled], -1 where rejected
    ) -> np.ndarray:
        """Most drafts of each request, [num_reqs], int64: K of the step or what it allows."""
        num_new = (sampled >= 0).sum(axis=1)
        limits = map(self._draft_limit_of, self.input_batch.req_ids, num_new)
        return np.minimum(np.fromiter(limits, np.int64, len(num_new)), num_speculative_tokens)

    def _draft_limit_of(self, req_id: str, num_new: int) -> int:
        """Most drafts of a request that has sampled `num_new` tokens in this step."""
        request = self.requests[req_id]
        params = request.sampling_params
        thoughts = self.input_batch.thinking_budget_state_holder
        if (
            params.thinking_token_budget is not None
            and thoughts is not None
            and len(thoughts.think_end_token_ids) > 1
        ):
            return 0  # vLLM counts these ends of a thought as if all drafts of them were accepted
        limit = max_drafts_of(params.extra_args, self.drafter.num_speculative_tokens)
        # vLLM masks stop tokens in the row after the drafts by where the step starts: a draft past
        # `min_tokens` would leave them masked there.
        num_masked = params.min_tokens - len(request.output_token_ids) - num_new
        return min(limit, num_masked - 1) if num_masked > 0 else limit

    def _schedule_drafts(
        self,
        max_drafts: np.ndarray,  # [num_reqs]
        sampled: np.ndarray,  # [num_reqs, max_num_sampled], -1 where rejected
        num_verified: np.ndarray,  # [num_reqs], drafts that the step verified
    ) -> DraftSchedule:
        num_reqs = self.input_batch.num_reqs
        return DraftSchedule.from_step(
            max_drafts=max_drafts,
            max_model_len=self.max_model_len,
            sampled_token_ids=sampled,
            num_computed=self.input_batch.num_computed_tokens_cpu[:num_reqs],
            num_scheduled=np.diff(self.query_start_loc.np[: num_reqs + 1]),
            num_verified=num_verified,
        )

    def _adapters_changed(self) -> None:
        """Forget the exit states that the old adapters made."""
        self.drafter.exit_query_cache.take()
        self._exit_entries = ExitQueryEntries()

    def reload_weights(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Reload as the host does, then forget what the drafter keeps of the old weights."""
        super().reload_weights(*args, **kwargs)
        self.drafter.weights_changed()


def _of_rows(sampling_metadata: SamplingMetadata, rows: torch.Tensor) -> SamplingMetadata:
    """The part of the sampling metadata that vLLM's draft sampling reads, for some requests."""
    if sampling_metadata.temperature is None:
        return sampling_metadata
    return dataclasses.replace(sampling_metadata, temperature=sampling_metadata.temperature[rows])


def require_same_version(driver_version: str) -> None:
    """Compare this worker's version with that of the process that configured it.

    Raises:
        RuntimeError: They differ: the options would not mean the same.
    """
    if driver_version != __version__:
        raise RuntimeError(
            f"the worker on {socket.gethostname()} has layerskip_vllm {__version__}, and the "
            f"engine that drives it has {driver_version}: install one version on all hosts"
        )
