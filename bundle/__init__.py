"""A scorer to copy into a product: a network as ONNX, and a Python file that needs numpy, Pillow and onnxruntime."""
