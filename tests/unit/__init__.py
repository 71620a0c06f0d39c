"""Pure tests, and tests of one module against small files."""
