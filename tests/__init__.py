"""The tests of tinygan: a package, so that no installed one of the same name stands for it."""
