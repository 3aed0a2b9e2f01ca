"""What developers run from a checkout: it is not part of the wheel."""
