"""`python -m fitkit` is the command `fitkit`."""

from fitkit.cli.main import main

if __name__ == "__main__":
    main(prog_name="fitkit")
