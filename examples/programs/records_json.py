"""One JSON document: python records_json.py BUNDLE IMAGES..."""

import json
import sys

from convexport.runtime import Classifier, find_images

bundle, *names = sys.argv[1:]
with Classifier(bundle) as classifier:
    records = [record.to_dict() for record in classifier.classify(find_images(names))]
    print(json.dumps({"classifier": classifier.info(), "records": records}, indent=2))
