"""The yardstick: self-speculation against every alternative in one run, beside the ideal."""
