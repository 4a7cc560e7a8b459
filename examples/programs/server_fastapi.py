"""A web server: CONVEXPORT_BUNDLE=bundle.zip uvicorn server_fastapi:app; curl --data-binary @a.png localhost:8000"""

import os
from typing import Annotated

from fastapi import Body, FastAPI, HTTPException

from convexport.runtime import Classifier

app = FastAPI()
classifier = Classifier(os.environ["CONVEXPORT_BUNDLE"])


@app.post("/")
def classify(image: Annotated[bytes, Body(media_type="application/octet-stream")]) -> dict:
    """FastAPI runs a plain `def` in its pool of threads; they share the one classifier."""
    record = classifier.classify_one(("upload", image))
    if not record.ok:
        raise HTTPException(422, record.to_dict())
    return record.to_dict()
