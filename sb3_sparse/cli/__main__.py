"""``python -m sb3_sparse.cli``."""

from sb3_sparse.cli import main

if __name__ == "__main__":
    main()
