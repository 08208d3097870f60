"""
Which backend runs a product: ``chooser.py`` decides, by a measurement (``measure.py``) that is remembered (``choices.py``), or
by a rule (``rule.py``).
"""
