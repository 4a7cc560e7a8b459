"""`convexport`: a classifier of any origin -> a verified bundle."""

from __future__ import annotations

import argparse

from convexport.cli import signals, terminal
from convexport.cli.convexport.arguments import parser
from convexport.cli.convexport.beside import add_to_triton, web_runtime_asked_for, write_web_page
from convexport.cli.convexport.results import as_json, print_diagnosis, print_refusal, print_summary
from convexport.cli.convexport.wanted import export_options
from convexport.cli.importing import libraries

# From the extras `export` and `cpu`; all of them are required.
NEEDED = {
    *("torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "safetensors", "sklearn", "scipy", "filelock"),
    "onnxruntime",
}


def main(argv: list[str] | None = None) -> int:
    """The command -> its exit code."""
    return terminal.guard("convexport", lambda: run(parser().parse_args(argv)))


@libraries("exporting", NEEDED, "export,cpu")
def run(options: argparse.Namespace) -> int:
    """Exports. Raises errors of `convexport.runtime.errors`."""
    from convexport.export.gate import Refusal
    from convexport.export.pipeline import export_bundle
    from convexport.export.verifying import diagnose

    signals.import_numpy()
    wanted = export_options(options)
    if options.diagnose:
        with signals.working():
            print_diagnosis(diagnose(wanted, terminal.remark), in_json=options.json)
        return 0
    runtime = web_runtime_asked_for(options)
    try:
        with signals.working():
            result = export_bundle(wanted, terminal.remark)
    except Refusal as refusal:
        print_refusal(refusal, in_json=options.json)
        raise
    if options.json:
        terminal.result(as_json({"bundle": str(result.path), "seconds": result.seconds, "manifest": result.manifest}))
    else:
        print_summary(result)
    if options.triton:  # last: the bundle is complete even if this fails
        with signals.working():
            add_to_triton(result.path, options.triton)
    if runtime is not None:
        with signals.working():
            write_web_page(result.path, options, runtime)
    return 0
