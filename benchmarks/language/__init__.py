"""The proof's ways of teaching on a pair with the weights of a real language model."""
