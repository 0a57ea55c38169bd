"""Log-probability, log-sum-exp and entropy of labels without materialised logits."""
