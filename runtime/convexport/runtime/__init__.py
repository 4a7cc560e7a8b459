"""Bundle and images -> records. Needs numpy, Pillow and msgspec; a back end's library inside that back end only."""
