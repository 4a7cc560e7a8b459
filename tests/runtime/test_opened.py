"""A classifier in other threads, in other processes, and in forked ones."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from convexport.runtime import BundleError, Classifier, Device, DeviceError, FakeBackend, Options
from convexport.runtime.devices import processor_kind
from convexport.runtime.manifest import Input
from helpers.bundles import change_manifest, make_bundle, pictures

INPUT = Input(height=12, width=12, channels=3)
WORDS = tuple(f"class {i}" for i in range(256))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", INPUT)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "numbers", INPUT, labels={"en": WORDS})


# Threads


def test_sixteen_threads_get_each_their_own_answers_from_one_classifier(numbers: Path) -> None:
    def work(client: int) -> list[int]:
        wanted = [(client * 31 + i) % 256 for i in range(100)]
        images = [np.full((12, 12, 3), number, np.uint8) for number in wanted]
        found = [record.index for record in classifier.classify(images)]
        found += [classifier.classify_one(image).index for image in images[:20]]
        return [a - b for a, b in zip(found, wanted + wanted[:20], strict=True)]

    with Classifier(numbers, backend=FakeBackend(256), batch=7) as classifier, ThreadPoolExecutor(16) as pool:
        assert [any(differences) for differences in pool.map(work, range(16))] == [False] * 16


def test_sixteen_threads_get_the_same_answers_from_onnx_runtime(bundle: Path) -> None:
    images = pictures(64, INPUT)
    with Classifier(bundle, device="cpu", backend="onnxruntime", threads=2, batch=8) as classifier:
        expected = [record.label for record in classifier.classify(images)]

        def work(client: int) -> bool:
            order = np.random.default_rng(client).permutation(64)
            found = [record.label for record in classifier.classify(images[order])]
            single = [classifier.classify_one(images[i]).label for i in order[:8]]
            return found == [expected[i] for i in order] and single == found[:8]

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(work, range(16))) == [True] * 16


# Pickled


def test_a_pickled_classifier_is_its_path_and_options_and_opens_the_bundle_anew(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(bundle.parent)
    image = pictures(1, INPUT)[0]
    with Classifier("tiny", Options(device="cpu", top=2), language="fr") as classifier:
        data = pickle.dumps(classifier)
        expected = classifier.classify_one(image)
    assert len(data) < 2000
    monkeypatch.chdir(tmp_path)  # a path from where it was opened still leads there
    with pickle.loads(data) as again:
        assert again.options == classifier.options
        assert again.classify_one(image) == expected


def test_a_spawned_process_is_sent_a_classifier(bundle: Path) -> None:
    images = pictures(3, INPUT)
    with Classifier(bundle, device="cpu") as classifier:
        expected = [classifier.classify_one(image) for image in images]
        with get_context("spawn").Pool(1) as pool:
            assert pool.map(classifier.classify_one, images) == expected


# Forked

PROGRAM = """
import os, signal, sys
import numpy as np
from convexport.runtime import Classifier
bundle, backend, use = sys.argv[1:]
classifier = Classifier(bundle, backend=backend, device="cpu", threads=2)
image = np.full((12, 12, 3), 7, np.uint8)
expected = classifier.classify_one(image)
inherited = id(classifier.backend)
child = os.fork()
if child == 0:
    signal.alarm(30)
    if use in ("classify", "classify and close"):
        assert classifier.classify_one(image) == expected
        assert id(classifier.backend) != inherited
        assert repr(classifier).startswith("<Classifier tiny")
    if use in ("close", "classify and close"):
        classifier.close()
    if use == "delete":
        del classifier
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), classifier.classify_one(image) == expected)
"""


def forked(program: str, *arguments: object) -> str:
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        program,
        *map(str, arguments),
    ]  # 3.12 warns of forks
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("backend", "use"),
    [
        *(("onnxruntime", use) for use in ("classify", "classify and close", "close", "delete", "exit")),
        *(("openvino", use) for use in ("close", "delete", "exit")),
    ],
)
def test_a_forked_child_ends_well_whatever_it_does_and_so_does_its_parent(bundle: Path, backend: str, use: str) -> None:
    pytest.importorskip(backend)
    assert forked(PROGRAM, bundle, backend, use) == "0 True\n"


OPENVINO = """
import os, sys
import numpy as np
from convexport.runtime import Classifier, ConvexportError
bundle, asked = sys.argv[1:]
inherited = Classifier(bundle, backend="openvino", device="cpu")
if os.fork() == 0:
    try:
        used = inherited if asked == "inherited" else Classifier(bundle, backend=asked, device="cpu")
        used.classify_one(np.zeros((12, 12, 3), np.uint8))
        print(used.description)
    except ConvexportError as error:
        print(error)
    sys.exit(0)
os.wait()
"""


@pytest.mark.parametrize("asked", ["inherited", "openvino", "auto"])
def test_openvino_is_refused_in_a_forked_child_where_it_might_hang(tmp_path: Path, asked: str) -> None:
    openvino = pytest.importorskip("openvino")
    rates = {("onnxruntime", "fp32"): 1.0, ("openvino", "fp32"): 2.0}
    folder = make_bundle(tmp_path / "tiny", INPUT, rates=rates)
    refused = (
        f"OpenVINO {openvino.__version__.partition('-')[0]} on cpu cannot be used in a process forked from one that "
        "used it"
    )
    fix = "use it in the children alone, start them with spawn, or use another back end"
    expected = f"onnxruntime on cpu in fp32; {refused}" if asked == "auto" else f"{refused}; {fix}"
    assert forked(OPENVINO, folder, asked) == f"{expected}\n"


PROMISED = """
import os, sys
import numpy as np
from convexport.runtime import Classifier
classifier = Classifier(sys.argv[1], device="cpu", sure=0.9)
print(classifier.backend.name, classifier.promise.threshold, flush=True)
if os.fork() == 0:
    classifier.classify_one(np.zeros((12, 12, 3), np.uint8))
    print(classifier.backend.name, classifier.promise.threshold)
    sys.exit(0)
os.wait()
"""


def test_what_is_sure_in_a_forked_child_is_what_was_promised_for_its_own_back_end(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    rates = {("onnxruntime", "fp32"): 1.0, ("openvino", "fp32"): 2.0}
    folder = make_bundle(tmp_path / "tiny", INPUT, rates=rates, machine=processor_kind())
    counted = {"images": 100, "answered": 90, "right": 89}
    variants = json.loads((folder / "bundle.json").read_bytes())["variants"]
    for number, found in enumerate(variants["fp32"]["verifications"]):
        found["promises"] = [
            {"promised": 0.9, "threshold": 0.25 + number / 2, "chosen": counted, "checked": counted, "weak": []}
        ]
    change_manifest(folder, variants=variants)
    assert forked(PROMISED, folder) == "openvino 0.75\nonnxruntime 0.25\n"


class OnGpu(FakeBackend):
    """What a back end on a GPU is to the classifier."""

    def __init__(self) -> None:
        super().__init__(10)
        self.device = Device("cuda")


def in_the_child(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were a child forked after the classifier was opened."""
    monkeypatch.setattr("convexport.runtime.opened.os.getpid", lambda: -1)
    assert classifier._holder.last.process != -1


def test_a_gpu_is_refused_in_a_forked_child(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = OnGpu()
    monkeypatch.setattr("convexport.runtime.opened.create", lambda bundle, options: (gpu, "a GPU"))
    classifier = Classifier(bundle)
    in_the_child(classifier, monkeypatch)
    with pytest.raises(DeviceError) as caught:
        classifier.classify_one(pictures(1, INPUT)[0])
    assert str(caught.value) == (
        "cuda:0 cannot be used in a process forked from one that used it; "
        "open the classifier in the child, or start the child with spawn"
    )
    classifier.close()
    assert not gpu.closed


def test_a_bundle_that_was_replaced_is_not_served_under_the_old_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle(tmp_path / "tiny", INPUT)
    with Classifier(folder, device="cpu") as classifier:
        change_manifest(folder, name="other")
        with monkeypatch.context() as child:
            in_the_child(classifier, child)
            with pytest.raises(BundleError) as caught:
                classifier.classify_one(pictures(1, INPUT)[0])
    assert str(caught.value) == f"{folder}: the bundle was replaced by another one; open it again"


def test_a_closed_classifier_stays_closed_in_a_child(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(bundle, device="cpu")
    classifier.close()
    in_the_child(classifier, monkeypatch)
    with pytest.raises(Exception, match=r"^the classifier is closed; open it again$"):
        classifier.classify_one(pictures(1, INPUT)[0])
