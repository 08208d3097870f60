"""What users do wrong, seen as early as it can be, and said in one sentence."""
