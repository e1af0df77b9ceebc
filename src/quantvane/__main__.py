"""``python -m quantvane``."""

from quantvane.cli import main

main()
