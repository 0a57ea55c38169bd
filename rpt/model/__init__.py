"""The decoder-only transformer, its configuration, and the trunk and branch primitives."""
