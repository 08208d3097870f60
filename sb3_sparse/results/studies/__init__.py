"""A study: the runs of a plan, which differ in some axes and in their seeds, put together and compared."""
