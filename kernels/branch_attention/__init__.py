"""Attention of branches to a shared trunk, to their past and to themselves."""
