"""The zoo: every network of torchvision and many of timm with random weights, exported, and why where it fails.

    python benchmarks/zoo.py --run DIR             exports what DIR has no result of; stops and goes on at any time
    python benchmarks/zoo.py --run DIR --only timm:resnet18 torchvision:alexnet
    python benchmarks/zoo.py --page DIR            the table of docs/zoo.md, from the results in DIR

Each network gets a process of its own and a limit of time. Its weights are random; the statistics of batch norm and
the last layer are fitted to photographs, so that each of them gets a class of its own, which is its label: a network
whose answers change is refused as a trained one would be.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

TIMM = """
resnet18 resnet26d resnetv2_50 resnext26ts seresnext26d_32x4d skresnet18 ecaresnet26t res2net50_26w_4s resnest14d
gernet_s regnetx_004 regnety_004 regnetz_005 dpn48b densenet121 vovnet39a ese_vovnet19b_dw dla34 hrnet_w18_small
mobilenetv3_small_100 mobilenetv4_conv_small mobilenet_edgetpu_v2_xs mobileone_s0 ghostnet_100 tinynet_e fbnetc_100
efficientnet_b0 tf_efficientnet_lite0 tf_efficientnetv2_b0 mixnet_s lcnet_050 hardcorenas_a rexnet_100 semnasnet_075
convnext_atto convnextv2_atto repvgg_a0 repghostnet_050 fastvit_t8 starnet_s1 inception_next_atto cspresnet50
vit_tiny_patch16_224 deit_tiny_patch16_224 levit_128s pit_ti_224 xcit_nano_12_p16_224 cait_xxs24_224
tnt_s_patch16_224 crossvit_tiny_240 convit_tiny coat_lite_tiny mobilevit_xxs mobilevitv2_050 efficientformer_l1
edgenext_xx_small swin_tiny_patch4_window7_224 pvt_v2_b0 poolformer_s12 mixer_s32_224 resmlp_12_224 gmlp_ti16_224
nfnet_l0 efficientvit_b0 tiny_vit_5m_224 davit_tiny volo_d1_224 focalnet_tiny_srf visformer_tiny xception41
selecsls42
""".split()  # noqa: SIM905
LARGEST, IMAGES, SECONDS = 100e6, 16, 150
PHOTOGRAPHS = Path("data/imagenet-samples")


def main() -> None:
    found = argparse.ArgumentParser()
    found.add_argument("--run", type=Path)
    found.add_argument("--page", type=Path)
    found.add_argument("--only", nargs="+", default=[])
    found.add_argument(
        "--share", nargs=2, type=int, default=[0, 1], help="the first of every so many networks: 0 2, 1 2"
    )
    found.add_argument("--seconds", type=int, default=SECONDS, help="the limit for one network")
    options = found.parse_args()
    if options.run:
        first, step = options.share
        run(options.run, (options.only or networks())[first::step], options.seconds)
    if options.page:
        print(page(options.page))


def networks() -> list[str]:
    """What is exported, those that compute little first."""
    from convexport.export.sources import torchvision

    models = torchvision.networks()
    known = {name: models.get_model_weights(name).DEFAULT.meta for name in torchvision.names()}
    ours = {f"torchvision:{name}": meta["_ops"] for name, meta in known.items() if meta["num_params"] <= LARGEST}
    rank = {name: 1.5 + index / 100 for index, name in enumerate(f"timm:{name}" for name in TIMM)}
    return sorted(ours | rank, key=(ours | rank).__getitem__)


def run(folder: Path, names: list[str], seconds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    import convexport.export.pipeline  # noqa: F401
    from convexport.export.sources.outside import library

    library("timm")
    import torch

    torch.set_num_threads(1)
    for name in names:
        place = folder / f"{name.replace(':', '-')}.json"
        if place.exists():
            continue
        place.write_text(json.dumps(child(name, seconds)))
        print(place.read_text()[:300], flush=True)


def child(name: str, seconds: int) -> dict[str, Any]:
    """The result of a network, made in a fork of this process, which has imported the libraries already."""
    started = time.perf_counter()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=lambda: there.send(export(name)))
    process.start()
    there.close()
    try:
        result = here.recv() if here.poll(seconds) else {"error": f"not done after {seconds} s", "kind": "time"}
    except EOFError:
        process.join()
        result = {"error": f"the process ended by {process.exitcode}", "kind": "crash"}
    process.kill()
    process.join()
    return result | {"name": name, "seconds": round(time.perf_counter() - started, 1)}


def export(name: str) -> dict[str, Any]:
    """One network's export, as the command does it, on `IMAGES` photographs."""
    import torch

    from convexport.export import gate, measures
    from convexport.export.passes.quantize import Int8Options
    from convexport.export.pipeline import ExportOptions, export_bundle
    from convexport.export.precisions import EXPORTS
    from convexport.export.sources.checkpoint import Source
    from convexport.export.sources.stated import Foreign
    from convexport.runtime.backends import registry
    from convexport.runtime.errors import ConvexportError

    measures.MAX_BATCH = gate.MAX_BATCH = 8
    registry.on = lambda kind: []  # ONNX Runtime alone
    # With random weights int8 is measured, and refuses nothing.
    anything = replace(EXPORTS["int8"].limits, accuracy_loss=1, disagreement=1, max_difference=1, mean_difference=1)
    EXPORTS["int8"] = replace(EXPORTS["int8"], limits=replace(anything, rows=1))
    with tempfile.TemporaryDirectory() as place:
        try:
            weights = Path(place, "random.pth")
            torch.save(fitted(name).state_dict(), weights)
            options = ExportOptions(
                source=Source(name, path=weights, foreign=Foreign()),
                precisions=("fp16", "int8"),
                calibration=Int8Options(images=IMAGES),
                calibration_data=PHOTOGRAPHS,
                verify_data=labeled(Path(place, "labels.csv")),
                out=Path(place),
            )
            result = export_bundle(options)
        except gate.Refusal as error:
            beyond = [f"{kind}: {one.name} {one.value:.4g}" for kind, one in error.result.failures]
            return {"error": "; ".join(beyond), "kind": "refused"}
        except ConvexportError as error:  # whatever else is raised is a fault, and ends the process
            return {"error": str(error).replace(place, ""), "kind": "error"}
        return described(result.path, result.manifest)


def photographs() -> list[Path]:
    """Those that a network is fitted to and verified with; int8 is calibrated on as many, spread over the folder."""
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))
    return files[:: len(files) // IMAGES][:IMAGES]


def label(row: int) -> int:
    return 61 * row % 1000


def labeled(place: Path) -> Path:
    """A file of the photographs and their classes."""
    rows = [f"{file.resolve()},{label(row)}\n" for row, file in enumerate(photographs())]
    place.write_text("file,index\n" + "".join(rows))
    return place


def described(folder: Path, manifest: Any) -> dict[str, Any]:
    import onnx

    graph = onnx.load(folder / "model.fp32.onnx").graph
    return {
        "size": [manifest.input.height, manifest.input.width],
        "parameters": manifest.model.parameters,
        "operators": sorted({node.op_type for node in graph.node}),
        "nodes": len(graph.node),
        "bytes": manifest.files["model.fp32.onnx"].bytes,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "images": manifest.variants["fp32"].verification.images,
        **{
            kind: {
                "agreement": one.verification.agreement,
                "difference": one.verification.max_abs_difference,
                "headroom": one.verification.fp16_headroom,
            }
            for kind, one in manifest.variants.items()
        },
    }


def fitted(name: str) -> Any:
    """The network with random weights, whose answers tell photographs apart."""
    import torch
    from torch import nn

    from convexport.export import own_images
    from convexport.export.sources import timm, torchvision
    from convexport.export.sources.stated import Foreign, input_of

    torch.manual_seed(0)
    kind, _, plain = name.partition(":")
    module: Any = (torchvision if kind == "torchvision" else timm).make(plain)
    if plain in ("googlenet", "inception_v3"):
        for one in module.modules():
            if isinstance(one, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(one.weight)
    known = (
        torchvision._known(torchvision.networks().get_model_weights(plain).DEFAULT, labels=False)
        if (kind == "torchvision")
        else timm._known(module, labels=False)[0]
    )
    images = own_images.read(photographs(), input_of(Foreign(), known, name))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(known.mean).view(1, 3, 1, 1)) / (
        torch.tensor(known.std).view(1, 3, 1, 1)
    )
    module.eval()
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for one in norms:
        one.momentum = 1.0
        one.train()
    with torch.no_grad():
        module(pixels)
        for one in norms:
            one.eval()
        fit_last(module, pixels)
    return module


def fit_last(module: Any, pixels: Any) -> None:
    """Sets every layer with the network's number of classes so that each image gets its own, by ridge regression."""
    import torch

    taken: dict[Any, Any] = {}
    classes = module(pixels).shape[1]
    last = [
        one for one in module.modules() if classes in (getattr(one, "out_features", 0), getattr(one, "out_channels", 0))
    ]
    hooks = [one.register_forward_pre_hook(lambda layer, given: taken.update({layer: given[0]})) for one in last]
    module(pixels)
    for hook in hooks:
        hook.remove()
    count = len(pixels)
    wanted = torch.zeros(count, classes, dtype=torch.float64)
    wanted[range(count), [label(row) for row in range(count)]] = 12.0
    for layer, given in taken.items():
        features = (given.mean((2, 3)) if given.dim() == 4 else given).reshape(count, -1, layer.weight.shape[1])
        features = features.mean(1).double()
        middle, goal = features.mean(0), wanted.mean(0)
        inner = (features - middle) @ (features - middle).T
        inner += torch.eye(count) * inner.trace() / count * 0.02
        weight = (torch.linalg.solve(inner, wanted - goal).T @ (features - middle)).float()
        layer.weight.copy_(weight.view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(goal - weight.double() @ middle)


def page(folder: Path) -> str:
    """The table of the networks that have a result, and the list of those that failed."""
    found = sorted((json.loads(file.read_text()) for file in folder.glob("*.json")), key=lambda one: one["name"])
    passed = [one for one in found if "error" not in one]
    kinds = ("fp32", "fp16", "int8")
    heading = "| network | input | parameters |" + "".join(f" {kind} agreement | max \\|Δp\\| |" for kind in kinds)
    lines = [
        "",
        f"{heading} operators | MB | s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for one in passed:
        columns = [
            f"{one[kind]['agreement']:.0%} | {one[kind]['difference']:.1e}" if kind in one else " | " for kind in kinds
        ]
        lines.append(
            f"| {one['name']} | {one['size'][0]} x {one['size'][1]} | {one['parameters'] / 1e6:.1f} M | "
            f"{' | '.join(columns)} | {len(one['operators'])} kinds, {one['nodes']} nodes | {one['bytes'] / 1e6:.1f} | "
            f"{one['seconds']:.0f} |"
        )
    for kind in ("timm", "torchvision"):
        ours = [one for one in found if one["name"].startswith(kind)]
        good = sum("error" not in one for one in ours)
        late = sum(one.get("kind") == "time" for one in ours)
        more = f"; {late} reached the time limit" if late else ""
        lines.insert(0, f"- {kind}: {good} of {len(ours)} pass fp32 and fp16{more}")
    lines += [""] * any("error" in one for one in found)
    lines += [f"- `{one['name']}`: {one['error']}" for one in found if "error" in one]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
