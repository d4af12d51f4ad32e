"""Every place where the plugin changes vLLM at run time: one module per hook or repair.

- `every_process/`: installed wherever vLLM loads plugins.
- `worker/`: installed in a worker of an engine with `self:E`.
- `other_releases.py`: installed instead of both on a vLLM that is not supported.

To add one, add a module to a folder; `install.py` finds it. Its docstring is its entry in the
ledger (`make ledger`) and has the sections Target, Reason, How, Upstream and May go. It defines
`is_needed`, a probe of what this vLLM does or of its release, and `install`, which may run often.
"""
