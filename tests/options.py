"""Options of `additional_config["layerskip"]` that tests share."""

FIXED = {"adaptive": False}
"""Every step drafts K tokens a request, so that drafts can be counted."""
