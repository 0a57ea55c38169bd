"""Reinforcement pre-training: model, rollouts, rewards, objectives, loop, commands."""
