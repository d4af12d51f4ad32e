"""Every place where the plugin changes vLLM at run time: one module per hook or repair.

- `every_process/`: installed wherever vLLM loads plugins.
- `worker/`: installed in a worker of an engine with `self:E`.
- `other_releases.py`: installed instead of both on an unsupported vLLM.

To add a hook, add a module to a folder; `install.py` finds it. Its docstring becomes its entry in
the ledger (`make ledger`) and has the sections Target, Reason, How, Upstream and May go. The module
defines `is_needed`, which probes this vLLM's behaviour or release, and `install`, which may run
often.
"""
