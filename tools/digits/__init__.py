"""How the built-in digits models are trained and measured."""
