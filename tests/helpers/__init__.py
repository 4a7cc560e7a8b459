"""What several tests share: bundles, graphs, stand-ins for libraries, trained networks, pages."""
