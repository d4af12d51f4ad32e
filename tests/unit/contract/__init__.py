"""The host contract: every vLLM internal that the plugin uses, and why.

Each module here covers one area, a folder or module of `layerskip_vllm/`. To add an expectation,
add it to the `EXPECTATIONS` of its area and run `make ledger`: `patches/README.md` lists them all.
"""
