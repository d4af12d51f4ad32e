"""The host contract: every internal of vLLM's that the plugin uses, and why.

A room of the contract is a module here, named as the folder or module of `layerskip_vllm/` that
uses the internals. To add an expectation, add a line to the `EXPECTATIONS` of its room, then run
`make ledger`: the README of `patches/` lists them all.
"""
