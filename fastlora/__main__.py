"""`python -m fastlora` is the `fastlora` command."""

from fastlora.cli import main

main()
