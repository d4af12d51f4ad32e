"""Options of `additional_config["layerskip"]` that tests share."""

FIXED = {"adaptive": False}
"""Every step drafts K tokens per request, which makes draft counts predictable."""
