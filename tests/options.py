"""Options of `additional_config["layerskip"]` that tests share."""

FIXED = {"adaptive": False, "stop_drafting": False}
"""Every step drafts K tokens a request, so that drafts can be counted."""
