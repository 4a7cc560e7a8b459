"""Graph passes: each file changes a network or its ONNX graph in one way."""
