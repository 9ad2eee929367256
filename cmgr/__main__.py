"""`python -m cmgr`, and `torchrun -m cmgr train`."""

from cmgr.cli.app import main

main()
