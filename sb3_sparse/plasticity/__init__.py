"""What happens inside a network while it trains, and resets that keep it able to learn."""
