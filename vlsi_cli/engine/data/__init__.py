"""Records, their images, the chat template and its response mask, and the order of batches."""
