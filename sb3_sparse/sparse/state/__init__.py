"""How sparse layers travel through state dicts: whole, or not at all."""
