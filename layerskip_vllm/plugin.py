"""The `vllm.general_plugins` entry point: vLLM calls `register` in every process it starts."""

from __future__ import annotations


def register() -> None:
    """Register the models and install the hooks. May be called many times."""
    from layerskip_vllm.compat.releases import SUPPORTED_VLLM, is_supported_vllm

    if is_supported_vllm():
        from layerskip_vllm.compat import every_process
        from layerskip_vllm.compat.install import install_hooks

        register_models()
        install_hooks(every_process)
    else:
        import vllm.version

        from layerskip_vllm.compat.other_releases import refuse_self_speculation
        from layerskip_vllm.version import __version__

        supported = " and ".join(f"{release}.*" for release in SUPPORTED_VLLM)
        refuse_self_speculation(
            f"layerskip_vllm {__version__} supports vLLM {supported}, and this is vLLM "
            f"{vllm.version.__version__}: install a matching pair, or serve without self:E and "
            "early exit"
        )


def register_models() -> None:
    """Make our architectures known to vLLM; it loads the module of each when it is used."""
    from vllm.model_executor.models import ModelRegistry

    from layerskip_vllm.models import (
        SUPPORTED_ARCHITECTURES,
        early_exit_architecture,
        layerskip_architecture,
    )

    known = ModelRegistry.get_supported_archs()
    for architecture, module in SUPPORTED_ARCHITECTURES.items():
        for name in (layerskip_architecture(architecture), early_exit_architecture(architecture)):
            if name not in known:
                ModelRegistry.register_model(name, f"{module}:{name}")
