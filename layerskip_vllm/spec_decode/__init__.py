"""The cycle's data: exit query cache, drafts, draft vocabulary; knows no runner."""
