"""checkpoint -> verified bundle: graph, precisions, gate, writer, and the pipeline that joins them."""
