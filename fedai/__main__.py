"`python -m fedai` is the command `fedai`."
import sys
from fedai.cli import main

if __name__ == '__main__': sys.exit(main())
