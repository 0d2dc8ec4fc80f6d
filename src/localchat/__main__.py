"""`python -m localchat`: the same as the `localchat` command."""

from localchat.cli.main import main

if __name__ == "__main__":
    main()
