"""A table: python table_pandas.py BUNDLE IMAGES..."""

import sys

import pandas

from convexport.runtime import Classifier, find_images, to_table

bundle, *names = sys.argv[1:]
with Classifier(bundle) as classifier:
    frame = pandas.DataFrame(to_table(classifier.classify(find_images(names)), top=2))
print(frame[frame.ok].groupby("label").probability.agg(["count", "mean"]))
print(frame.loc[~frame.ok, ["input", "error_kind"]])
