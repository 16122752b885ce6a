"""The programs. Exit 0: done; 1: a check or the server said no; 2: bad usage or input, or an answer that could not be written."""
