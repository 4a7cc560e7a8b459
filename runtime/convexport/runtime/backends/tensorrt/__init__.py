"""TensorRT: building, proof and cache of engines, and the back end that runs them."""
