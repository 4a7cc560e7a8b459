"""TensorRT: engines are built, proved and cached here, and one back end runs them."""
