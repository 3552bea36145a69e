"""The `trialshards` command. It may import every other room; nothing imports it."""
