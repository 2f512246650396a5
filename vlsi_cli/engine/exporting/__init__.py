"""ONNX graphs of a vision language model, the folders that runtimes read, and the check against torch."""
