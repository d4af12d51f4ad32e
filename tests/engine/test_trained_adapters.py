"""An adapter that TRL and PEFT trained for early exit: alone through vLLM's LoRA, and merged."""

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from vllm.lora.request import LoRARequest

from layerskip_vllm.training.mixin import LayerSkipMixin
from layerskip_vllm.training.recipe import LayerSkipSection
from tests.engine.engines import as_prompts, both, generate_plainly, greedy, random_prompts
from tests.engine.features import EXIT_LAYER, LORA, NUM_LAYERS

pytestmark = pytest.mark.runner_v1
"""On V2 `self:E` refuses LoRA."""

K = 3
TEXTS = [f"{n} times {n + 1} is {n * (n + 1)}\n" * 2 for n in range(32)]
LAYERSKIP = LayerSkipSection(curriculum="fixed", exit_layers=[EXIT_LAYER], e_scale=1.0, p_max=0.2)
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class AdapterTrainer(LayerSkipMixin, SFTTrainer):
    """LayerSkip and LoRA on TRL's trainer."""


@pytest.fixture(scope="module")
def base(random_llama):
    return random_llama(num_layers=NUM_LAYERS, late_scale=0.3)


@pytest.fixture(scope="module")
def adapter_and_merged(base, tmp_path_factory):
    """Folders of the adapter and of the model with it."""
    directory = tmp_path_factory.mktemp("trained")
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = AdapterTrainer(
        AutoModelForCausalLM.from_pretrained(base),
        SFTConfig(
            str(directory / "adapter"),
            max_steps=8,
            per_device_train_batch_size=8,
            learning_rate=2e-2,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        layerskip=LAYERSKIP,
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=MODULES),
    )
    trainer.train()
    trainer.save_model()
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(directory / "merged")
    tokenizer.save_pretrained(directory / "merged")
    return str(directory / "adapter"), str(directory / "merged")


@pytest.fixture(scope="module")
def prompts():
    return as_prompts(random_prompts([5, 40, 17]))


def test_the_adapter_serves_through_lora(base, adapter_and_merged, prompts):
    adapter = [LoRARequest("trained", 1, adapter_and_merged[0])] * len(prompts)
    params = greedy(40, ignore_eos=True)
    expected, actual, counted = both(
        base, prompts, params, EXIT_LAYER, K, lora_request=adapter, **LORA
    )
    assert actual == expected
    assert counted.num_accepted > 0
    assert expected != generate_plainly(base, prompts, params)


def test_the_merged_model_serves(base, adapter_and_merged, prompts):
    params = greedy(40, ignore_eos=True)
    expected, actual, counted = both(adapter_and_merged[1], prompts, params, EXIT_LAYER, K)
    assert actual == expected
    assert counted.num_accepted > 0
    assert expected != generate_plainly(base, prompts, params)
