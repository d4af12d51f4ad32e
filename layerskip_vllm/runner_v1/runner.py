"""What a V1 model runner of vLLM's does differently under self-speculation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorStats
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.outputs import ECConnectorOutput, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from layerskip_vllm.config import OPTIONS_KEY
from layerskip_vllm.runner_v1.adapters import AdapterSwitchMixin
from layerskip_vllm.runner_v1.draft_choice import of_rows
from layerskip_vllm.runner_v1.exit_observer import ExitObserver
from layerskip_vllm.runner_v1.proposer import LayerSkipProposer
from layerskip_vllm.runner_v1.row_processors import RowProcessors
from layerskip_vllm.runner_v1.sampled_rows import SampledRows
from layerskip_vllm.runner_v1.verifier import reject_drawn, sample_and_compare
from layerskip_vllm.scheduling.draft_order import DraftOrder, draft_order_of
from layerskip_vllm.scheduling.limits import max_num_tokens
from layerskip_vllm.spec_decode.draft_batch import DraftBatch
from layerskip_vllm.spec_decode.draft_probs import DraftProbs
from layerskip_vllm.telemetry import StepStats
from layerskip_vllm.vllm_config.speculative_config import require_same_version

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
        self.num_resumed_tokens = 0
        self._observer = ExitObserver(self.drafter)
        self._observes = False
        self._row_processors = RowProcessors(
            vllm_config, device, self.max_num_reqs * (self.num_spec_tokens + 1)
        )
        self._step_stats = StepStats(0)
        self._drawn_from = DraftProbs()
        self._draft_batch_before: DraftBatch | None = None
        self._continuing_req_ids: set[str] = set()

    def execute_model(self, scheduler_output: SchedulerOutput, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Keep the last step's exit states for this step only, even if it runs no forward.

        A step that neither verifies drafts nor makes any is plain vLLM's: vLLM asks in each step
        whether it speculates, and what it does then costs as much as a layer of a small model.
        """
        order = draft_order_of(scheduler_output)
        speculates = order.num_drafts > 0 or bool(scheduler_output.scheduled_spec_decode_tokens)
        self._observes = order.observes
        self._observer.forget()
        self.speculative_config = self.vllm_config.speculative_config if speculates else None
        self._step_stats = StepStats(scheduler_output.total_num_scheduled_tokens)
        self._draft_batch_before = self.drafter.exit_query_cache.take()
        self._drawn_from.forget(scheduler_output.finished_req_ids)
        cached = scheduler_output.scheduled_cached_reqs
        self._continuing_req_ids = set(cached.req_ids) - set(cached.resumed_req_ids)
        return super().execute_model(scheduler_output, *args, **kwargs)

    def _model_forward(  # type: ignore[no-untyped-def]
        self,
        input_ids=None,
        positions=None,
        intermediate_tensors=None,
        inputs_embeds=None,
        **kwargs,
    ):
        """Verify from the exit states where every token has one, by the full forward where not."""
        entries, batch = self._resumed_entries(), self._draft_batch_before
        ends = self.query_start_loc.np[1 : self.input_batch.num_reqs + 1]
        if entries is None or batch is None:
            if self._observes:
                inputs = (input_ids, positions, inputs_embeds)
                return self._observer.forward(self._sampled_rows(), ends, *inputs)
            return super()._model_forward(
                input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
            )
        self._step_stats.num_resumed_tokens = len(entries)
        self.num_resumed_tokens += len(entries)
        hidden_states = self.drafter.verify(entries, positions, batch.drafts_at.layer_index)
        if self._observes:
            self._observer.read(self._sampled_rows(), ends, entries)
        return hidden_states

    def _resumed_entries(self) -> np.ndarray | None:
        """Entry of the exit query cache of each token of the step; None where one has none.

        A request that is new, or resumed from preemption, has blocks into which its drafts' early
        KV was never written.
        """
        req_ids = self.input_batch.req_ids
        if self._draft_batch_before is None or not self._continuing_req_ids.issuperset(req_ids):
            return None
        num_reqs = len(req_ids)
        return self._draft_batch_before.resumed_entries(
            req_ids,
            self.input_batch.num_computed_tokens_cpu[:num_reqs],
            np.diff(self.query_start_loc.np[: num_reqs + 1]),
        )

    def _input_fits_in_drafter(self, common_attn_metadata: CommonAttentionMetadata | None) -> bool:
        """Whether to draft at all. How far each request may is decided request by request, so one
        near `max_model_len` does not stop the others as vLLM's own test would.
        """
        return common_attn_metadata is not None

    def _sample(
        self, logits: torch.Tensor | None, spec_decode_metadata: SpecDecodeMetadata | None
    ) -> SamplerOutput:
        """Sample the step's rows; where it observes, count what each exit would have drafted."""
        rows = self._sampled_rows()
        output = self._sample_rows(logits, rows, spec_decode_metadata)
        if self._observer.has_states:
            is_discarded = self.discard_request_mask.np[: len(rows.drafts)]
            self._step_stats.exit_matches = self._observer.count(
                rows, output.sampled_token_ids, is_discarded
            )
        return output

    def _sampled_rows(self) -> SampledRows:
        """The rows of the step: after each request's last token, and after each of its drafts."""
        return SampledRows.of_drafts(self.input_batch.spec_token_ids[: self.input_batch.num_reqs])

    def _sample_rows(
        self,
        logits: torch.Tensor | None,
        rows: SampledRows,
        spec_decode_metadata: SpecDecodeMetadata | None,
    ) -> SamplerOutput:
        """Sample all rows plainly, and compare; drafts that were drawn may be rejected."""
        drafts = rows.drafts
        requests = [self.requests[req_id] for req_id in self.input_batch.req_ids]
        metadata = self.input_batch.sampling_metadata
        verified = (
            self.sampler,
            logits,
            rows,
            metadata,
            self._row_processors.of_step(requests, drafts),
        )
        draft_probs = self._drawn_from.take(self.input_batch.req_ids, drafts)
        if draft_probs is not None and not metadata.all_greedy:
            return reject_drawn(*verified, spec_decode_metadata, draft_probs)
        return sample_and_compare(*verified, self.discard_request_mask.np[: len(drafts)])

    def _bookkeeping_sync(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Hide the generators of requests in the middle of their prompts from the host.

        It takes back what it has drawn for them, by the generator's offset. Nothing was, and the
        generators of a CPU have no offset: with a seed and a prompt in chunks, vLLM 0.32 ends.
        """
        generators = self.input_batch.generators
        discarded = np.flatnonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])
        hidden = {row: generators.pop(row) for row in discarded.tolist() if row in generators}
        try:
            return super()._bookkeeping_sync(*args, **kwargs)
        finally:
            generators.update(hidden)

    def sample_tokens(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Let the step's numbers travel with its tokens, in the place of a connector's stats.

        vLLM has no other way from a worker to the server's metrics. The connector is an encoder
        cache's, and `self:E` serves no model that has one.
        """
        output = super().sample_tokens(*args, **kwargs)
        self.speculative_config = self.vllm_config.speculative_config
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
        num_verified = spec_decode_metadata.num_draft_tokens
        drafts: list[list[int]] = [[] for _ in num_verified]
        sampled = sampled_token_ids.cpu().numpy()
        # Ids beyond the vocabulary count as rejected, as in RejectionSampler.parse_output.
        sampled = np.where(sampled < self.input_batch.vocab_size, sampled, -1)
        self._step_stats.sampled(sum(num_verified))
        order = draft_order_of(scheduler_output)
        batch = self._draft_batch(order, sampled, np.array(num_verified))
        if batch is None:
            return drafts
        rows = torch.from_numpy(batch.rows).to(self.device)
        self.drafter.propose_drafts(
            batch, common_attn_metadata.block_table_tensor[rows], of_rows(sampling_metadata, rows)
        )
        self._step_stats.drafted()
        for row, token_ids in zip(batch.rows, batch.drafts(), strict=False):
            drafts[row] = token_ids
        self._drawn_from.keep(batch)
        return drafts

    def _draft_batch(
        self,
        order: DraftOrder,
        sampled: np.ndarray,  # [num_reqs, max_num_sampled], -1 where rejected
        num_verified: np.ndarray,  # [num_reqs], drafts that the step verified
    ) -> DraftBatch | None:
        """The requests that draft after this step; None where there are none."""
        if order.num_drafts == 0:
            return None
        req_ids = self.input_batch.req_ids
        num_reqs = len(req_ids)
        limits = [order.limits.get(req_id, order.num_drafts) for req_id in req_ids]
        return DraftBatch.from_step(
            req_ids,
            max_drafts=np.where(self.discard_request_mask.np[:num_reqs], -1, limits),
            max_num_tokens=np.array(list(map(self._max_num_tokens, req_ids)), np.int64),
            sampled_token_ids=sampled,
            num_computed=self.input_batch.num_computed_tokens_cpu[:num_reqs],
            num_scheduled=np.diff(self.query_start_loc.np[: num_reqs + 1]),
            num_verified=num_verified,
            drafts_at=self.drafter.exits[order.exit_index],
        )

    def _max_num_tokens(self, req_id: str) -> int:
        """Most tokens up to which a request may draft."""
        request = self.requests[req_id]
        return max_num_tokens(
            request.sampling_params, request.num_prompt_tokens, self.max_model_len
        )

    def _adapters_changed(self) -> None:
        """Forget the exit states that the old adapters made."""
        self.drafter.exit_query_cache.take()
        self._draft_batch_before = None

    def reload_weights(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Reload as the host does, then forget what the drafter keeps of the old weights."""
        super().reload_weights(*args, **kwargs)
        self.drafter.weights_changed()
