"""``python -m tinygan`` is the command ``tinygan``."""

from tinygan.cli.main import main

if __name__ == "__main__":
    main()
