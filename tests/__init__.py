"""The tests of bitexp; a package so that they can import `tests.support`."""
