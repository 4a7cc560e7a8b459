"""Forked workers: CONVEXPORT_BUNDLE=bundle.zip gunicorn --preload --workers 2 server_wsgi:app"""

import json
import os

from convexport.runtime import Classifier

# Before the fork: each worker opens its own at its first use, without OpenVINO, which a forked process cannot use.
classifier = Classifier(os.environ["CONVEXPORT_BUNDLE"])


def app(environ, start_response):
    """The body of a request is an image, that of the answer its record."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    record = classifier.classify_one(("upload", body))
    start_response("200 OK" if record.ok else "422 Unprocessable Entity", [("Content-Type", "application/json")])
    return [json.dumps(record.to_dict()).encode()]
