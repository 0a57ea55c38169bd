"""Reinforcement pre-training on trunk and branches: model, rollouts, rewards, objectives, loop, commands."""
