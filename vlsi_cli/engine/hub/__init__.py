"""A model on its way to the Hugging Face hub: what travels, what must not, its card, and the upload."""
