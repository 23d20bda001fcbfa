"""The nets: DCGAN's of any size, their first weights, and what can be asked of any net."""
