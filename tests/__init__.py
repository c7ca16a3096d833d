"""The tests. While they are collected, no garbage is: what torch and transformers make when they are loaded stays."""

import gc

gc.disable()  # tests/conftest.py enables it when the tests are collected
