"""The policy: how many tokens to draft in each step; knows no runner."""
