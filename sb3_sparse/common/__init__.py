"""What every part of the package may use. Knows neither torch nor any RL library."""
