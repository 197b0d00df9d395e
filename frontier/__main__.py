import sys

from frontier.cli import main

sys.exit(main())
