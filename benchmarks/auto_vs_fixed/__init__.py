"""`self:auto` against every fixed (E, K): on each set of texts, and while the texts change."""
