"""Several processes: python parallel_joblib.py loky|multiprocessing BUNDLE IMAGES... (spawned, or forked)"""

import sys

from joblib import Parallel, delayed

from convexport.runtime import Classifier, find_images


def labels(classifier, paths):
    """A classifier travels to another process as its path and options; there it opens the bundle anew."""
    return [(record.input, record.label if record.ok else "") for record in classifier.classify(paths)]


if __name__ == "__main__":
    backend, bundle, *names = sys.argv[1:]
    paths = list(find_images(names))
    with Classifier(bundle, threads=1) as classifier, Parallel(n_jobs=2, backend=backend) as parallel:
        for part in parallel(delayed(labels)(classifier, paths[start::2]) for start in range(2)):
            print(*part, sep="\n")
